"""Where the service is, and how the command speaks with it.

Changes are messages. Reading goes to the database where it can be reached, by the same queries
that answer the reading requests, and by message where it cannot.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from scheduler.exits import NotInTime, Unreachable
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from scheduler.service.home import DEFAULT_HOME, Home
from worker.config import Config, load

if TYPE_CHECKING:
    from scheduler.client import Client

_NO_BROKER: Final = (
    "The broker cannot be reached ({}); is the service running (`sharewright up`), and is --home "
    "or the configuration file its own?"
)
_WATCH_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 15.0
_F = TypeVar("_F", bound=Callable[..., Any])


class Session:
    """One run of the command: whose, where, and how it prints."""

    def __init__(self, home: str | None, project: str, *, as_json: bool) -> None:
        self._home = home
        self.project = project
        self.as_json = as_json

    @cached_property
    def config(self) -> Config:
        """The service's configuration: a home's when one is named or runs, else the file's."""
        if self._home is not None:
            return Home.at(self._home).config()
        default = Home.at(DEFAULT_HOME)
        return default.config() if default.service() is not None else load()

    def payload(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A request's payload; options that were not given are left out.

        Who may run this command reads the service's configuration: an administrator.
        """
        return {
            "version": 1,
            "context": {
                "project_id": self.project,
                "user_id": getpass.getuser(),
                "roles": ["admin"],
            },
            **{name: value for name, value in values.items() if value is not None},
        }

    def read(self, verb_name: str, **values: Any) -> dict[str, Any]:
        """Answer a reading request."""
        verb = VERBS[verb_name]
        payload = self.payload(values)
        request = parse(verb, payload)
        found = self.from_database(verb_name, request)
        if found is not None:
            return found
        with self.client() as client:
            return client.read(verb_name, payload, admin=verb.admin, timeout=_ANSWER_SECONDS)

    def from_database(self, verb_name: str, request: Any) -> dict[str, Any] | None:
        """Answer from the database; None when it cannot be reached from here."""
        from scheduler.queries.reads import READS  # noqa: PLC0415

        return self.query(lambda connection: READS[verb_name](connection, request, self.config))

    def query(self, ask: Callable[[Any], dict[str, Any]]) -> dict[str, Any] | None:
        """Ask the database; None when it cannot be reached from here."""
        from sqlalchemy.engine import make_url  # noqa: PLC0415 - after `--help`
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

        from worker.db.core.engine import engine_for, reading  # noqa: PLC0415

        url = make_url(self.config.database.url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            return None  # opening it would make it
        try:
            with reading(engine_for(self.config.database.url)) as connection:
                return ask(connection)
        except DBAPIError:
            return None

    @contextmanager
    def tx(self) -> Iterator[None]:
        """What an operator does to database and broker by hand; both must be reachable."""
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - after `--help`

        from worker.messaging.broker import UNREACHABLE  # noqa: PLC0415

        try:
            yield
        except DBAPIError as error:
            raise Unreachable(f"The database cannot be reached ({type(error).__name__}).") from None
        except UNREACHABLE as error:
            raise Unreachable(_NO_BROKER.format(type(error).__name__)) from None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A producer's connection; what keeps it from the service is one sentence."""
        from scheduler.client import Client, NotHeard, broker_fault  # noqa: PLC0415

        broker = self.config.broker
        # Asked first: the client itself would try for half a minute before it says so.
        fault = broker_fault(broker.url)
        if fault is not None:
            raise Unreachable(_NO_BROKER.format(fault))
        client = Client(broker.url, broker.result_backend)
        try:
            yield client
        except NotHeard as error:
            raise Unreachable(str(error)) from None
        finally:
            client.close()

    def change(
        self,
        verb_name: str,
        *,
        wait: bool,
        timeout: float,
        key: str | None,
        admin: bool = False,
        **values: Any,
    ) -> None:
        """Send a request by message, show its steps as they are done, and print its result.

        ``admin``: to the administrators' queue, also where the verb is everybody's.
        """
        operation_id = self.send(verb_name, key=key, admin=admin, **values)
        if not wait:
            self.print({"operation_id": operation_id})
            return
        self.print(self.watch(operation_id, timeout))

    def changed(self, verb_name: str, *, timeout: float, **values: Any) -> dict[str, Any]:
        """Send a request as :meth:`change` does, and return its result."""
        return self.watch(self.send(verb_name, key=None, **values), timeout)

    def send(self, verb_name: str, *, key: str | None, admin: bool = False, **values: Any) -> str:
        """Send a request by message; return the id of the operation that was accepted."""
        verb = VERBS[verb_name]
        payload = self.payload({**values, "idempotency_key": key})
        parse(verb, payload)
        with self.client() as client:
            return client.submit(
                verb_name, payload, admin=admin or verb.admin, timeout=_ANSWER_SECONDS
            )

    def seal(self, password: str) -> dict[str, str]:
        """Seal a password with the service's public key, which is asked for by message."""
        with self.client() as client:
            return client.seal(password, project_id=self.project, timeout=_ANSWER_SECONDS)

    def watch(self, operation_id: str, timeout: float) -> dict[str, Any]:
        """Show an operation's steps until it ends; return its result.

        Raises :class:`~worker.errors.RequestFailed` when it failed.
        """
        from scheduler.cli.timeline import Timeline  # noqa: PLC0415 - rich is slow to import
        from worker.errors import RequestFailed  # noqa: PLC0415
        from worker.model import OperationState  # noqa: PLC0415

        verb = VERBS["show_operation"]
        request = parse(verb, self.payload({"operation_id": operation_id}))
        deadline = time.monotonic() + timeout
        with Timeline(quiet=self.as_json) as timeline:
            while True:
                operation = self.from_database("show_operation", request)
                if operation is None:
                    return self._wait_without_database(operation_id, deadline)
                timeline.show(operation)
                if OperationState(operation["state"]).has_ended:
                    break
                if time.monotonic() > deadline:
                    raise NotInTime(
                        f"Operation {operation_id} has not ended within {timeout:.0f} s and goes "
                        f"on; see `sharewright operation watch {operation_id}`."
                    )
                time.sleep(_WATCH_SECONDS)
        if operation["error"]:
            raise RequestFailed.from_json(operation["error"])
        return operation["result"] or {"operation_id": operation_id}

    def _wait_without_database(self, operation_id: str, deadline: float) -> dict[str, Any]:
        with self.client() as client:
            answer: dict[str, Any] = client.result(
                operation_id, timeout=max(0.0, deadline - time.monotonic())
            )
            return answer

    def print(self, document: Mapping[str, Any]) -> None:
        """Print one object."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2))
            return
        from scheduler.cli.tables import print_object  # noqa: PLC0415 - rich is slow to import

        print_object(document)

    def print_list(self, document: Mapping[str, Any], columns: tuple[str, ...]) -> None:
        """Print a page of a list; its one key besides ``next_marker`` holds the rows."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2))
            return
        from scheduler.cli.tables import print_rows  # noqa: PLC0415 - rich is slow to import

        rows = next(value for name, value in document.items() if name != "next_marker")
        print_rows(rows, columns)
        if document.get("next_marker"):
            click.echo(f"There are more: --marker {document['next_marker']}", err=True)


def pass_session(command: _F) -> _F:
    """Hand a command its :class:`Session`; ``--json`` and ``--project`` may follow the verb."""

    @click.option("--json", "own_as_json", is_flag=True, help="Print JSON, for programs.")
    @click.option("--project", "own_project", help="On whose behalf.")
    @click.pass_context
    def with_session(
        ctx: click.Context, /, *, own_as_json: bool, own_project: str | None, **options: Any
    ) -> Any:
        root = ctx.find_root().obj
        session = Session(
            root["home"],
            own_project or root["project"],
            as_json=own_as_json or root["as_json"],
        )
        return command(session, **options)

    return cast("_F", update_wrapper(with_session, command))
