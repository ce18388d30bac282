"""``python -m benchmarks.statements``: what one share sends to PostgreSQL, by the server's log."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence

import psycopg
from sqlalchemy.engine import make_url

from benchmarks.bed import Bed, Scale
from benchmarks.sides import Ours, Publish
from tests.support.services import wait_until

SHARES = 50
_LINE = re.compile(r"LOG:  (?:execute [^:]*|statement): ([^\n]*(?:\n\t[^\n]*)*)")
_KIND = re.compile(
    r"(BEGIN|COMMIT|ROLLBACK|WITH|SELECT|UPDATE \w+|INSERT INTO \w+|DELETE FROM \w+)"
)


def main() -> int:
    """Count for a create on a server that serves, and for a delete."""
    with Bed(Scale(full=True)) as bed:
        ours = Ours(bed)
        [network] = ours.networks(1)
        ours.side.batch(ours.shares(20, share_network_id=network))
        _log_statements(ours)
        created = _count(ours, "create_share", ours.shares(SHARES, share_network_id=network))
        _count(ours, "delete_share", ours.deletions(created))
    return 0


def _log_statements(ours: Ours) -> None:
    url = make_url(ours.deployment.database_url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")
    log = ours.side.postgres.directory / "postgres.log"
    wait_until(lambda: "LOG:  statement" in log.read_text(errors="replace"), "it logs statements")


def _count(ours: Ours, what: str, requests: Sequence[Publish]) -> Sequence[dict[str, object]]:
    log = ours.side.postgres.directory / "postgres.log"
    before = log.stat().st_size
    answers = ours.side.batch(requests).results
    with log.open("rb") as written:
        written.seek(before)
        statements = _LINE.findall(written.read().decode(errors="replace"))
    kinds = Counter(_kind(" ".join(statement.split())) for statement in statements)
    print(f"{what}: {len(statements) / len(requests):.1f} statements each")
    for kind, number in kinds.most_common():
        print(f"  {number / len(requests):5.2f}  {kind}")
    return answers


def _kind(statement: str) -> str:
    found = _KIND.match(statement)
    kind = found.group(1) if found else statement[:30]
    table = re.search(r" FROM (\w+)", statement)
    return f"SELECT {table.group(1)}" if kind == "SELECT" and table else kind


if __name__ == "__main__":
    sys.exit(main())
