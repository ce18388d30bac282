"""Statements that are built once per process, for the paths that every share takes.

SQLAlchemy uses three quarters of the CPU time of a small statement on PostgreSQL when the
statement is built anew, and half when it is not (docs/explanation/performance.md). A
:class:`Prepared` is compiled once per process; its text then goes to psycopg directly, which
prepares it on the server. On SQLite, where the statement itself costs most, SQLAlchemy runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import BindParameter, ClauseElement, Connection, Executable, Row
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import replacement_traverse

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True, slots=True)
class _Compiled:
    """Statement as psycopg takes it, and the conversion of each parameter by its SQL type."""

    text: str
    convert: Mapping[str, Callable[[Any], Any]]

    def values(self, given: dict[str, Any]) -> dict[str, Any]:
        for name, process in self.convert.items():
            given[name] = process(given[name])
        return given


class Prepared:
    """Statement with parameters named by ``bindparam``.

    A statement that differs between the databases is given as a function of the dialect's name,
    which is called on first use.
    """

    def __init__(self, build: Executable | Callable[[str], Executable]) -> None:
        self._build = build
        self._built: dict[str, ClauseElement] = {}
        self._compiled: _Compiled | None = None

    def first(self, connection: Connection, **values: Any) -> Row[Any] | None:
        """Run the statement; return its first row, or None."""
        if connection.dialect.name == "sqlite":
            return connection.execute(self.statement("sqlite"), values).first()
        # psycopg's named tuple has all that callers use of a row: the names, and _asdict.
        return cast("Row[Any] | None", self._send(connection, values).fetchone())

    def all(self, connection: Connection, **values: Any) -> Sequence[Row[Any]]:
        """Run the statement; return all its rows."""
        if connection.dialect.name == "sqlite":
            return connection.execute(self.statement("sqlite"), values).all()
        return cast("Sequence[Row[Any]]", self._send(connection, values).fetchall())

    def run(self, connection: Connection, **values: Any) -> int:
        """Run a statement that returns no rows; return how many rows it changed."""
        if connection.dialect.name == "sqlite":
            return connection.execute(self.statement("sqlite"), values).rowcount
        return self._send(connection, values).rowcount

    def statement(self, dialect: str) -> Any:
        """Return the statement for a dialect, with its constants as literals.

        As parameters they would keep PostgreSQL's generic plan from using partial indexes.
        """
        if dialect not in self._built:
            built = self._build(dialect) if callable(self._build) else self._build
            self._built[dialect] = replacement_traverse(cast("Any", built), {}, _written_out)
        return self._built[dialect]

    def _send(self, connection: Connection, values: dict[str, Any]) -> psycopg.Cursor[Any]:
        from worker.db.core.postgresql import send  # noqa: PLC0415 - SQLite does without psycopg

        compiled = self._compiled
        if compiled is None:
            compiled = self._compiled = _compile(connection, self.statement("postgresql"))
        return send(connection, compiled.text, compiled.values(values))


def _written_out(element: Any, **_: Any) -> Any:
    if isinstance(element, BindParameter) and not element.required:
        return element.render_literal_execute()
    return None


def _compile(connection: Connection, statement: ClauseElement) -> _Compiled:
    dialect = connection.dialect
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    asked = {name: bound for name, bound in compiled.binds.items() if bound.required}
    text = compiled.construct_expanded_state(dict.fromkeys(asked)).statement
    processors = {
        name: bound.type.dialect_impl(dialect).bind_processor(dialect)
        for name, bound in asked.items()
    }
    return _Compiled(text, {name: found for name, found in processors.items() if found})
