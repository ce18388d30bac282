"""The command's connection to the service.

Changes are messages. Reading goes to the database where it can be reached, by the same queries
that answer the reading requests, and by message where it cannot.
"""

from __future__ import annotations

import getpass
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial, update_wrapper
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.core import ParameterSource

from scheduler.cli.references import resolved
from scheduler.cli.tables import print_object, print_rows
from scheduler.exits import EXIT_DEFECT, NotInTime, Unreachable, failure_of
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from scheduler.service.home import DEFAULT_HOME, Home
from worker.config import Config, configured_path, load, masked, sqlite_path

if TYPE_CHECKING:
    from scheduler.client import Client

_log = logging.getLogger(__name__)
_WATCH_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 15.0
JSON_HELP: Final = 'Print JSON, for programs; also errors, as {"error": ...}.'
_F = TypeVar("_F", bound=Callable[..., Any])


class Session:
    """One run of the command: its project, its service, and its output format."""

    def __init__(self, home: str | None, project: str, *, as_json: bool) -> None:
        self._named = Home.at(home) if home is not None else None
        self.project = project
        self.as_json = as_json

    @cached_property
    def config(self) -> Config:
        """The service's configuration: a home's when one is named or runs, else the file's."""
        return self._home.config() if self._home is not None else load()

    @cached_property
    def _home(self) -> Home | None:
        if self._named is not None:
            return self._named
        default = Home.at(DEFAULT_HOME)
        return default if default.service() is not None else None

    @cached_property
    def effective(self) -> Config:
        """The configuration that processes of the service run with.

        That of a home has the backend that ``sharewright up`` makes for itself, and so has that of
        a machine where nothing is configured.
        """
        from scheduler.service.defaults import configuration  # noqa: PLC0415 - after `--help`

        if self._home is None and configured_path() is not None:
            return self.config
        return configuration(self._home or Home.at(DEFAULT_HOME))[0]

    @property
    def where(self) -> str:
        """The source of the configuration, for error messages."""
        if self._home is not None:
            return f"of the home {self._home.path}"
        path = configured_path()
        return f"of {path}" if path else "by default, as no configuration file was found"

    @property
    def is_configured(self) -> bool:
        """Whether a home or a configuration file says what to use."""
        return self._home is not None or configured_path() is not None

    def _no_broker(self, fault: str) -> Unreachable:
        return Unreachable(
            f"The broker {masked(self.config.broker.url)} ({self.where}) cannot be reached "
            f"({fault}). Is the service running (`sharewright up`), and is --home or the "
            f"configuration file its own?"
        )

    def _no_database(self, fault: str) -> Unreachable:
        return Unreachable(
            f"The database {masked(self.config.database.url)} ({self.where}) cannot be used: "
            f"{fault}."
        )

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
        path = sqlite_path(self.config.database.url)
        if path is not None and not path.exists():
            return None  # opening it would make it
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - after `--help`

        from worker.db.core.engine import engine_for, reading  # noqa: PLC0415

        try:
            with reading(engine_for(self.config.database.url)) as connection:
                return ask(connection)
        except DBAPIError:
            return None

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn the errors of an unreachable database or broker into :class:`Unreachable`."""
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - after `--help`

        from worker.messaging.broker import UNREACHABLE  # noqa: PLC0415

        try:
            yield
        except DBAPIError as error:
            raise self._no_database(str(error.orig).strip()) from None
        except UNREACHABLE as error:
            raise self._no_broker(type(error).__name__) from None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Connect as a producer; raises :class:`Unreachable` when no service answers."""
        if self._named is not None and self._named.service() is None:
            raise Unreachable(
                f"No service runs in {self._named.path}; `sharewright up --home` starts one there."
            )
        from scheduler.client import Client, NotHeard, broker_fault  # noqa: PLC0415

        broker = self.config.broker
        # Asked first: the client itself would try for half a minute before it says so.
        fault = broker_fault(broker.url)
        if fault is not None:
            raise self._no_broker(fault)
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
        print_object(document)

    def print_list(self, document: Mapping[str, Any], columns: tuple[str, ...]) -> None:
        """Print a page of a list; its one key besides ``next_marker`` holds the rows."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2))
            return
        rows = next(value for name, value in document.items() if name != "next_marker")
        print_rows(rows, columns)
        if document.get("next_marker"):
            click.echo(f"There are more: --marker {document['next_marker']}", err=True)


def _handing(*takes: str) -> Callable[[_F], _F]:
    """Make a decorator that hands a command its :class:`Session`.

    ``takes`` are the common options that mean something to the command; they may stand before or
    after its name, and the others are refused.
    """
    options = {
        "home": click.option(
            "--home",
            "own_home",
            type=click.Path(file_okay=False),
            help="Directory of a service that runs by `sharewright up --home`.",
        ),
        "project": click.option("--project", "own_project", help="The project to speak for."),
        "as_json": click.option("--json", "own_as_json", is_flag=True, help=JSON_HELP),
    }

    def decorate(command: _F) -> _F:
        @click.pass_context
        def with_session(ctx: click.Context, /, **given: Any) -> Any:
            root = ctx.find_root()
            if "as_json" not in takes:
                _refuse_meaningless(root, ctx.command_path)
            own = {name: given.pop(f"own_{name}", None) for name in options}
            session = Session(
                own["home"] or root.obj["home"],
                own["project"] or root.obj["project"],
                as_json=bool(own["as_json"] or root.obj["as_json"]),
            )
            root.obj["command"] = ctx.command
            if "as_json" not in takes:
                return _logged(session, partial(command, session, **given))
            return command(session, **resolved(ctx.command, given, session.read))

        decorated: Any = with_session
        for name in takes:
            decorated = options[name](decorated)
        return cast("_F", update_wrapper(decorated, command))

    return decorate


def _logged(session: Session, process: Callable[[], Any]) -> Any:
    """Run a process of the service; with JSON logs, log the error that ends it."""
    from worker.logs import set_up_logging  # noqa: PLC0415 - after `--help`

    set_up_logging(session.config.log)
    try:
        return process()
    except Exception as error:
        if session.config.log.format != "json":
            raise
        failure = failure_of(error)
        _log.error("%s", failure.sentence() if failure else "A defect", exc_info=failure is None)
        sys.exit(failure.exit_code if failure else EXIT_DEFECT)


def _refuse_meaningless(root: click.Context, path: str) -> None:
    """Refuse ``--json`` and ``--project`` for commands that print nothing and have no project."""
    for name, option in (("project", "--project"), ("as_json", "--json")):
        if root.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} means nothing to `{path}`; leave it out.")


pass_session: Final = _handing("as_json", "project", "home")
"""For commands that speak for a project."""
pass_operator: Final = _handing("as_json", "home")
"""For commands on the service's own files, database and queues."""
pass_process: Final = _handing("home")
"""For commands that are processes of the service."""
