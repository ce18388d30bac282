import sys

from celery import Celery

broker, results, task_id, project, net, gib = sys.argv[1:]
app = Celery(broker=broker, backend=results)
want = {"version": 1, "context": {"project_id": project}, "size": int(gib), "share_network_id": net}
app.send_task("sharewright.request.create_share", [want], task_id=task_id, queue="requests")
try:
    print(app.AsyncResult(task_id).get(timeout=60)["export_locations"][0]["path"])
except Exception as failure:
    sys.exit("code: {}\nmessage: {}\nobject: {}\nfield: {}".format(*failure.args))
