"""The commands that are the service: its processes, its tables, and all of it at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from scheduler.cli.commands import Command, Group, argument
from scheduler.cli.session import Session, pass_operator, pass_process
from worker.config import masked

SILENT_SECONDS: Final = 2.0
"""A database that answers sooner is not worth a word."""


@click.group(cls=Group)
def db() -> None:
    """The database's tables: upgrade, check."""


@db.command("upgrade")
@pass_operator
def upgrade(session: Session) -> None:
    """Bring the database to this version; harmless when it is there, and when run twice."""
    from worker.db import schema  # noqa: PLC0415 - after `--help`

    if not session.is_configured:
        click.echo(
            f"sharewright: no configuration file was found; the database is "
            f"{masked(session.config.database.url)}.",
            err=True,
        )
    with session.reaching(), waiting_for(session.config.database.url):
        revision = schema.upgrade(session.config.database.url)
    session.print({"database": masked(session.config.database.url), "revision": revision})


@contextmanager
def waiting_for(database_url: str) -> Iterator[None]:
    """Tell the user when the database does not answer soon."""

    def say() -> None:
        click.echo(f"sharewright: waiting for the database {masked(database_url)} ...", err=True)

    timer = threading.Timer(SILENT_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@db.command("check")
@click.option(
    "--database", is_flag=True, help="Compare the service's own database, not a new one in memory."
)
@pass_operator
def check(session: Session, database: bool) -> None:  # noqa: FBT001 - click's flag
    """Say how migrations (or the database) and this version's models differ; exit 1 if they do."""
    from worker.db import schema  # noqa: PLC0415 - after `--help`
    from worker.db.core.engine import engine_for  # noqa: PLC0415

    url = session.config.database.url
    compared = f"The database {masked(url)}" if database else "A new database made by migrations"
    with session.reaching(), waiting_for(url):
        differences = schema.check(engine_for(url)) if database else schema.check_migrations()
    if session.as_json:
        session.print({"compared": compared, "differences": differences})
    elif differences:
        click.echo("\n".join(differences))
    agreed = "differs from" if differences else "agrees with"
    click.echo(f"{compared} {agreed} this version's models.", err=True)
    if differences:
        sys.exit(1)


@click.command(cls=Command)
@click.option("--group", default="default", show_default=True, help="Whose backends it serves.")
@click.option(
    "--name",
    default="",
    help="Its name in Flower; default: the group, the second on a host GROUP-2.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Steps that it does at once.",
)
@click.option("--pool", default="prefork", show_default=True, help="prefork or solo.")
@pass_process
def worker(session: Session, **options: Any) -> None:
    """Run the worker of a group."""
    from worker.app import run_worker  # noqa: PLC0415 - after `--help`

    _require_revision(session)
    sys.exit(run_worker(session.config, **options))


@click.command(cls=Command)
@click.option(
    "--requests",
    type=click.Choice(["all", "changes", "reads"]),
    default="all",
    show_default=True,
    help="Which requests it takes; with a process for each kind, neither waits for the other.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Requests that it takes in at once; more than one needs --pool prefork.",
)
@click.option("--pool", default="solo", show_default=True, help="prefork or solo.")
@pass_process
def scheduler(session: Session, **options: Any) -> None:
    """Run the process that takes requests in and chooses backends."""
    from scheduler.intake import run_scheduler  # noqa: PLC0415 - after `--help`

    _require_revision(session)
    sys.exit(run_scheduler(session.config, **options))


@click.command(cls=Command)
@pass_process
def reconciler(session: Session) -> None:
    """Run the process that resumes overdue operations."""
    from worker.app import run_reconciler  # noqa: PLC0415 - after `--help`

    _require_revision(session)
    run_reconciler(session.config, stopped_by_signal())


def _require_revision(session: Session) -> None:
    """Refuse to start before the database is upgraded."""
    from worker.db.schema import require_revision  # noqa: PLC0415 - after `--help`

    require_revision(session.config.database.url)


def stopped_by_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


@click.command(cls=Command)
@pass_process
def health(session: Session) -> None:
    """Serve /healthz, /readyz and /metrics on the configured port."""
    from scheduler.service.health import listen, serve  # noqa: PLC0415 - after `--help`

    serve(session.config, listen(session.config.health), stopped_by_signal())


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@argument("arguments", "What Flower is to be told.", nargs=-1, type=click.UNPROCESSED)
@pass_process
def flower(session: Session, arguments: tuple[str, ...]) -> None:
    """Run Flower on the service's broker; ARGUMENTS are Flower's own."""
    if find_spec("flower") is None:
        raise click.ClickException("Flower is not installed; install sharewright[flower].")
    from worker.app import make_app  # noqa: PLC0415 - after `--help`

    make_app(session.config).start(["flower", *arguments])


@click.command(cls=Command)
@click.option(
    "--home",
    envvar="SHAREWRIGHT_HOME",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for everything the service keeps. [default: ~/.sharewright]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Steps that each worker group does at once.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    help="Seconds that workers get to finish when told to stop.",
)
@click.option("--log-level", default=None, help="Python log level of all processes.")
@click.pass_context
def up(
    ctx: click.Context, home: Path | None, concurrency: int, grace: float, log_level: str | None
) -> None:
    """Run everything embedded: Redis, scheduler, workers, reconciler and health.

    SIGTERM or Ctrl-C stops it: workers finish what they have in hand or hand it over. What serves
    the shares goes on without it.
    """
    from scheduler.service.home import DEFAULT_HOME, Home  # noqa: PLC0415 - after `--help`
    from scheduler.service.up import run_up  # noqa: PLC0415

    chosen = Home.at(home or ctx.find_root().obj["home"] or DEFAULT_HOME)
    sys.exit(run_up(chosen, concurrency=concurrency, grace=grace, log_level=log_level))


@click.command(cls=Command)
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="As of `up`.")
@click.pass_context
def decommission(ctx: click.Context, home: Path | None) -> None:
    """Take away what a stopped service keeps on this host (images, mounts).

    Refused while it runs, and while there are shares: delete them first.
    """
    from scheduler.service import decommission as it  # noqa: PLC0415
    from scheduler.service.home import DEFAULT_HOME, Home  # noqa: PLC0415 - after `--help`

    chosen = Home.at(home or ctx.find_root().obj["home"] or DEFAULT_HOME)
    for backend in it.decommission(chosen):
        click.echo(f"Backend {backend} keeps nothing on this host any more.")
