"""The `audit` command: compare external systems with the database."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from scheduler.cli.commands import Command
from scheduler.cli.session import Session, pass_session
from scheduler.exits import EXIT_FAILED

_COUNTS: Final = (
    *("backend", "orphan", "missing", "unknown"),
    *("removed", "not_removed", "postponed", "not_listed", "cannot_tell"),
)
_FINDINGS: Final = (
    *("backend", "part", "problem", "kind", "thing", "owner_kind", "owner_id"),
    *("times", "first_seen", "error"),
)
_SHOWN: Final = 1000


@click.command(cls=Command)
@click.option("--backend", "chosen", multiple=True, help="May be given several times; else all.")
@click.option("--repair", is_flag=True, help="Remove orphans that were seen twice and are old.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for each backend; its audit goes on afterwards.",
)
@pass_session
def audit(session: Session, chosen: tuple[str, ...], repair: bool, timeout: float) -> None:  # noqa: FBT001 - click's flag
    """Compare the database with the backends' external systems (administrators only).

    Says what is there without a row (orphans), what is missing, and what bears an id that this
    database does not know. Exits with 4 when a part of a backend could not be listed.
    """
    from scheduler.queries.audits import list_findings  # noqa: PLC0415 - after `--help`

    names = chosen or tuple(sorted(session.config.backends))
    results: list[dict[str, Any]] = [
        session.changed("audit_backend", timeout=timeout, backend=name, repair=repair)
        for name in names
    ]
    found = session.query(lambda connection: list_findings(connection, names, _SHOWN))
    findings = [] if found is None else found["findings"]
    if session.as_json:
        session.print({"backends": results, "findings": findings})
    else:
        session.print_list({"backends": results}, _COUNTS)
        if findings:
            session.print_list({"findings": findings}, _FINDINGS)
    if any(result["not_listed"] for result in results):
        sys.exit(EXIT_FAILED)
