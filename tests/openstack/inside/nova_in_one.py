"""Nova's API, scheduler, conductor and compute (the fake driver) in one process.

They talk over oslo.messaging's in-process transport, so no message queue is needed.

Usage: nova_in_one.py PORT   (the configuration is found by OS_NOVA_CONFIG_DIR)
"""

from __future__ import annotations

from nova import monkey_patch

monkey_patch.patch(backend="threading")

import shlex  # noqa: E402 - Nova wants its choice of threads made before anything else
import sys  # noqa: E402

import os_brick  # noqa: E402
import os_vif  # noqa: E402
import serve  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402

PORT = int(sys.argv[1])
sys.argv = ["nova"]  # the application parses it itself when it is imported

import nova.conf  # noqa: E402
from nova import context, objects, service, utils  # noqa: E402
from nova.compute import rpcapi as compute  # noqa: E402
from nova.conductor import rpcapi as conductor  # noqa: E402
from nova.objects import host_mapping  # noqa: E402
from nova.scheduler import rpcapi as scheduler  # noqa: E402
from nova.wsgi import osapi_compute  # noqa: E402 - reads the configuration

objects.Service.enable_min_version_cache()
priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
os_brick.setup(nova.conf.CONF)
os_vif.initialize()
for names in (
    {"binary": "nova-conductor", "topic": conductor.RPC_TOPIC},
    {"binary": "nova-scheduler", "topic": scheduler.RPC_TOPIC},
    {
        "binary": "nova-compute",
        "topic": compute.RPC_TOPIC,
        "topic_alt": compute.RPC_TOPIC_ALT,
    },
):
    service.Service.create(**names).start()
host_mapping.discover_hosts(context.get_admin_context())
serve.serve(osapi_compute.application, PORT)
