"""The baseline: bare Celery, three steps that do nothing but one PostgreSQL transaction each.

Broker, pool, processes, events, acknowledgements and serializer are taken from the engine's own
application, so that the two cannot drift apart. ``python -m benchmarks.raw_worker`` runs a worker
of the steps; with ``--intake`` the process that is sent a message and publishes the chain.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys

import psycopg
from celery import Celery, chain
from celery.canvas import Signature
from sqlalchemy.engine import make_url

from worker.app import make_app, start
from worker.config import Config, load
from worker.messaging.queues import REQUESTS, step_queue

STEPS = step_queue("default", 0)
TABLE = "CREATE TABLE raw_steps (chain_id text, step integer, PRIMARY KEY (chain_id, step))"
_INSERT = "INSERT INTO raw_steps VALUES (%s, %s)"
_SAME = (
    *("broker_url", "broker_transport_options", "result_backend", "result_serializer"),
    *("result_expires", "task_serializer", "accept_content", "task_acks_late"),
    *("task_create_missing_queues", "worker_prefetch_multiplier", "worker_hijack_root_logger"),
    *("worker_send_task_events", "task_send_sent_event", "task_track_started"),
    *("worker_enable_remote_control", "broker_connection_retry_on_startup", "enable_utc"),
)


def make_raw_app(config: Config) -> Celery:
    """Bare Celery with the engine's settings; its chain's last link stores the one result."""
    app = Celery("raw", set_as_current=False)
    ours = make_app(config).conf
    app.conf.update({name: ours[name] for name in _SAME})

    @functools.cache
    def connection(_pid: int) -> psycopg.Connection:
        url = make_url(config.database.url).set(drivername="postgresql")
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)

    def register(number: int) -> None:
        def step(chain_id: str) -> dict[str, str]:
            database = connection(os.getpid())
            with database.transaction():
                database.execute(_INSERT, (chain_id, number))
            return {"id": chain_id}

        app.task(
            step,
            name=f"raw.step{number}",
            ignore_result=number < 3,
            track_started=False,  # it would store a second result; the event is sent all the same
            shared=False,
        )

    for number in (1, 2, 3):
        register(number)

    def intake(chain_id: str) -> None:
        raw_chain(app, chain_id).apply_async(retry=False)

    app.task(intake, name="raw.intake", ignore_result=True, shared=False)
    return app


def raw_chain(app: Celery, chain_id: str) -> Signature:
    """The three links; the last one's result is stored under the chain's id."""
    links = [
        app.signature(f"raw.step{number}", args=(chain_id,), immutable=True, queue=STEPS)
        for number in (1, 2, 3)
    ]
    links[-1].set(task_id=chain_id)
    return chain(*links, app=app)


def main() -> int:
    """Run one worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.raw_worker", description=__doc__)
    parser.add_argument("--intake", action="store_true")
    parser.add_argument("--concurrency", type=int, default=2)
    options = parser.parse_args()
    config = load()
    return start(
        make_raw_app(config),
        config,
        queues=[REQUESTS] if options.intake else [STEPS],
        concurrency=1 if options.intake else options.concurrency,
        pool="solo" if options.intake else "prefork",
        name="raw-intake" if options.intake else "raw",
    )


if __name__ == "__main__":
    sys.exit(main())
