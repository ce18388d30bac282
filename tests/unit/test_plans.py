"""Every statement of the hot path, and every page of a list, finds its rows by an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import ClauseElement, Connection, Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.sql.compiler import SQLCompiler

from scheduler.acceptance import accept as dispatch
from scheduler.acceptance import lookup
from scheduler.acceptance import shares as share_verbs
from scheduler.placement import pools
from scheduler.queries.reads import READS
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from scheduler.service import health
from worker.config import Config
from worker.db import capacity, shares, snapshots, statuses
from worker.db.core.engine import open_engine, reading, transaction
from worker.db.core.prepared import Prepared
from worker.db.operations import retention, statements
from worker.db.share_servers import store as servers
from worker.db.tables.all import metadata
from worker.engine import heartbeat
from worker.model import ShareStatus

MODULES = (
    dispatch,
    pools,
    lookup,
    share_verbs,
    capacity,
    shares,
    snapshots,
    statuses,
    servers,
    statements,
    heartbeat,
)
STATEMENTS = {
    f"{module.__name__}.{name}": statement
    for module in MODULES
    for name, statement in vars(module).items()
    if isinstance(statement, Prepared)
} | {
    f"a share becomes {status}": statuses._moving(statuses.shares, status, ())
    for status in (ShareStatus.AVAILABLE, ShareStatus.DELETING)
}
LISTS = ("list_shares", "list_snapshots", "list_share_networks", "list_share_servers")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(make_url(database_url))
    metadata.create_all(opened)
    yield opened
    opened.dispose()


def text_of(connection: Connection, statement: ClauseElement) -> str:
    compiled = statement.compile(dialect=connection.dialect)
    assert isinstance(compiled, SQLCompiler)
    asked = [name for name, bound in compiled.binds.items() if bound.required]
    return compiled.construct_expanded_state(dict.fromkeys(asked)).statement


def plan_on_postgresql(connection: Connection, text: str) -> str:
    """The one plan for all values of the parameters: the server keeps to it in the end."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
    for number, name in enumerate(names, 1):
        text = text.replace(f"%({name})s", f"${number}")
    # There are no rows yet: whatever has an index is to be found by it.
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
    connection.exec_driver_sql(f"PREPARE asked AS {text}")
    nothing = f"({', '.join(['NULL'] * len(names))})" if names else ""
    rows = connection.exec_driver_sql(f"EXPLAIN EXECUTE asked{nothing}").all()
    connection.exec_driver_sql("DEALLOCATE asked")
    return "\n".join(str(row[0]) for row in rows)


def plan_on_sqlite(connection: Connection, text: str) -> str:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", (None,) * text.count("?")).all()
    return "\n".join(str(row.detail) for row in rows)


def scans(connection: Connection, plan: str) -> list[str]:
    """What of a plan looks at whole tables."""
    if connection.dialect.name == "sqlite":
        return re.findall(r"^SCAN (?!CONSTANT).*", plan, re.MULTILINE)
    whole = re.findall(r"Seq Scan on \w+", plan)
    # An index that is read from end to end finds nothing either.
    nodes = re.findall(r"(Index (?:Only )?Scan using .*\n?)((?:.*\n?){0,2})", plan)
    return whole + [node for node, after in nodes if "Index Cond" not in after]


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_hot_statement_finds_its_rows_by_an_index(engine: Engine, name: str) -> None:
    with transaction(engine) as connection:
        dialect = connection.dialect.name
        text = text_of(connection, STATEMENTS[name].statement(dialect))
        plan = (plan_on_sqlite if dialect == "sqlite" else plan_on_postgresql)(connection, text)
        assert not scans(connection, plan), plan


def asked_by(engine: Engine, look: Callable[[Connection], object]) -> list[tuple[str, Any]]:
    """The statements that a look at the database comes to."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        asked.append((text, values))

    with reading(engine) as connection:
        event.listen(engine, "before_cursor_execute", note)
        look(connection)
        event.remove(engine, "before_cursor_execute", note)
    return asked


@pytest.mark.parametrize(
    "look",
    [
        lambda connection: list(health._operations(connection)),
        lambda connection: retention.has_old(connection, 60.0),
        lambda connection: retention.forget_old(connection, 60.0, 10),
        lambda connection: retention.forget_old_audits(connection, "audit_backend", 60.0, 10),
    ],
    ids=["metrics", "has_old", "forget_old", "forget_old_audits"],
)
def test_what_is_done_all_the_time_looks_at_no_whole_table_of_operations(
    engine: Engine, look: Callable[[Connection], object]
) -> None:
    found = 0
    for text, values in asked_by(engine, look):
        with transaction(engine) as connection:
            if connection.dialect.name == "sqlite":
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
                plan = "\n".join(str(row.detail) for row in rows)
            else:
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                rows = connection.exec_driver_sql(f"EXPLAIN {text}", values).all()
                plan = "\n".join(str(row[0]) for row in rows)
        found += " operations" in plan
        assert not re.search(
            r"SCAN operations(?! USING INDEX ix_operations_(due|pending))", plan
        ), plan
        assert "Seq Scan on operations" not in plan, plan
    assert found, "nothing was asked about operations"


def test_there_are_hot_statements() -> None:
    """Otherwise the tests above would show nothing."""
    names = " ".join(STATEMENTS)
    assert all(name in names for name in ("CLAIM", "ADVANCE", "END", "_TAKE_ROOM", "_RESERVE"))
    assert len(STATEMENTS) > 25


@pytest.mark.parametrize("verb", LISTS)
@pytest.mark.parametrize("all_projects", [False, True])
def test_a_page_of_a_list_is_read_in_the_order_of_an_index(
    engine: Engine, verb: str, all_projects: bool
) -> None:
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        asked.append((text, values))

    payload = {
        "version": 1,
        "context": {"project_id": "p", "roles": ["admin"]},
        "all_projects": all_projects,
    }
    with reading(engine) as connection:
        event.listen(engine, "before_cursor_execute", note)
        READS[verb](connection, parse(VERBS[verb], payload), Config())
        event.remove(engine, "before_cursor_execute", note)
    [(text, values)] = asked
    with transaction(engine) as connection:
        if connection.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
            plan = "\n".join(str(row.detail) for row in rows)
            assert "USING INDEX" in plan, plan
            assert "TEMP B-TREE" not in plan, plan
            return
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        connection.exec_driver_sql("SET LOCAL enable_sort = off")
        connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        rows = connection.exec_driver_sql(f"EXPLAIN {text}", values).all()
        plan = "\n".join(str(row[0]) for row in rows)
        assert "Index Scan" in plan, plan
        assert "Sort" not in plan, plan
