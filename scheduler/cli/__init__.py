"""The ``sharewright`` command.

Exit codes: 0 done; 1 a defect; 2 wrong usage; 3 refused; 4 failed and undone; 5 not found;
6 not ended in time; 7 service unreachable; 8 the configuration cannot be used; 130 interrupted.

Groups are imported when they are used: ``--help`` must not wait for Celery and SQLAlchemy.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final, cast

import click

from scheduler.exits import EXIT_INTERRUPTED, exit_code_of, sentence_of

_COMMANDS: Final = {
    "share": ("shares:share", "Shares: create, delete, extend, show, list."),
    "snapshot": ("snapshots:snapshot", "Snapshots: create, delete, show, list."),
    "access": ("access:access", "Who may mount a share: allow, deny, list."),
    "share-network": ("share_networks:share_network", "Where share servers get addresses from."),
    "security-service": ("security_services:security_service", "What share servers log in to."),
    "share-type": ("share_types:share_type", "Named demands on a backend."),
    "share-server": ("share_servers:share_server", "Share servers: show, list, ensure, delete."),
    "backend": ("backends:backend", "Backends: show, list, disable, enable."),
    "operation": ("operations:operation", "Operations: show, list, watch, cancel, retry, give up."),
    "audit": ("audit:audit", "Compare the database with what exists outside."),
    "dead-letter": ("dead_letters:dead_letter", "Messages that no task could be run for."),
    "schema": ("schemas:schema", "JSON Schemas of the requests' payloads."),
    "secrets": ("secrets:secrets", "The keys that passwords are sealed with."),
    "up": ("processes:up", "Run everything embedded, in one process tree."),
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
    help="On whose behalf ($SHAREWRIGHT_PROJECT).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.version_option(package_name="sharewright")
@click.pass_context
def cli(ctx: click.Context, home: str | None, project: str, as_json: bool) -> None:  # noqa: FBT001 - click's flags
    """Provision file shares inside tenants' own networks.

    Exit codes: 0 done, 2 wrong usage, 3 refused, 4 failed and undone, 5 not found, 6 not ended
    in time, 7 service unreachable, 8 the configuration cannot be used.
    """
    ctx.obj = {"home": home, "project": project, "as_json": as_json}


def main() -> None:
    """Run the command; errors that are expected become one sentence and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except Exception as error:
        expected = exit_code_of(error)
        if expected is None:
            raise
        click.echo(f"sharewright: {sentence_of(error)}", err=True)
        code = expected
    sys.exit(code if isinstance(code, int) else 0)
