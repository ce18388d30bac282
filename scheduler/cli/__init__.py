"""The ``sharewright`` command.

Exit codes: 0 done; 1 a defect; 2 wrong usage; 3 refused; 4 failed and undone; 5 not found;
6 not ended in time; 7 service unreachable; 8 the configuration cannot be used; 130 interrupted.

Groups are imported when they are used: ``--help`` must not wait for Celery and SQLAlchemy.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from typing import Any, Final, cast

import click

from scheduler.cli.spelling import spelled
from scheduler.exits import EXIT_DEFECT, EXIT_INTERRUPTED, Failure, failure_of

_COMMANDS: Final = {
    "share": ("shares:share", "Shares: create, delete, extend, show, list."),
    "snapshot": ("snapshots:snapshot", "Snapshots: create, delete, show, list."),
    "access": ("access:access", "Who may mount a share: allow, deny, list."),
    "share-network": ("share_networks:share_network", "Where share servers get addresses from."),
    "security-service": ("security_services:security_service", "What share servers log in to."),
    "share-type": ("share_types:share_type", "Named demands on a backend."),
    "quota": ("quotas:quota", "What a project may have: show, set, unset."),
    "share-server": ("share_servers:share_server", "Share servers: show, list, ensure, delete."),
    "backend": ("backends:backend", "Backends: show, list, disable, enable."),
    "operation": ("operations:operation", "Operations: show, list, watch, cancel, retry, give up."),
    "audit": ("audit:audit", "Compare the database with what exists outside."),
    "dead-letter": ("dead_letters:dead_letter", "Messages that no task could be run for."),
    "schema": ("schemas:schema", "JSON Schemas of the requests' payloads."),
    "secrets": ("secrets:secrets", "The keys that passwords are sealed with."),
    "up": ("processes:up", "Run everything embedded, in one process tree."),
    "config": ("configuration:config", "The configuration: show, check."),
    "db": ("processes:db", "The database's tables: upgrade, check."),
    "scheduler": ("processes:scheduler", "Run the process that takes requests in."),
    "worker": ("processes:worker", "Run the worker of a group."),
    "reconciler": ("processes:reconciler", "Run the process that takes up what is overdue."),
    "health": ("processes:health", "Serve /healthz, /readyz and /metrics."),
    "decommission": ("processes:decommission", "Take away what a stopped service keeps."),
    "flower": ("processes:flower", "Run Flower on the service's broker."),
}


class _Commands(click.Group):
    """Knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command when it is used."""
        del ctx
        found = _COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, name = found[0].split(":")
        return cast(
            "click.Command", getattr(importlib.import_module(f"scheduler.cli.{module}"), name)
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    envvar="SHAREWRIGHT_HOME",
    type=click.Path(file_okay=False),
    help="Directory of a service that runs by `sharewright up --home`. Without it "
    "~/.sharewright where one runs there, else the configuration file.",
)
@click.option(
    "--project",
    envvar="SHAREWRIGHT_PROJECT",
    default="default",
    show_default=True,
    help="The project to speak for ($SHAREWRIGHT_PROJECT).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.version_option(package_name="sharewright")
@click.pass_context
def cli(ctx: click.Context, home: str | None, project: str, as_json: bool) -> None:  # noqa: FBT001 - click's flags
    """Provision file shares inside tenants' own networks.

    Exit codes: 0 done, 2 wrong usage, 3 refused, 4 failed and undone, 5 not found, 6 not ended
    in time, 7 service unreachable, 8 the configuration cannot be used.
    """
    ctx.ensure_object(dict).update(home=home, project=project, as_json=as_json)


def main() -> None:
    """Run the command; errors that are expected become one sentence and an exit code."""
    run: dict[str, Any] = {}
    try:
        code = cli.main(standalone_mode=False, obj=run)
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a defect is shown in full
        code = _report(error, run.get("command"), as_json="--json" in sys.argv)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, command: click.Command | None, *, as_json: bool) -> int:
    """Tell of an error on standard error, or as a document on standard output; return the code."""
    failure = failure_of(error)
    if failure is None:
        traceback.print_exception(error)
        defect = f"A defect ({type(error).__name__}); standard error has it in full."
        failure = Failure(EXIT_DEFECT, "internal", defect)
        if not as_json:
            return failure.exit_code
    if as_json:
        click.echo(json.dumps(failure.document(), indent=2))
        return failure.exit_code
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"Try `{error.ctx.command_path} --help` for help.", err=True)
    click.echo(f"sharewright: {spelled(failure, command)}", err=True)
    return failure.exit_code
