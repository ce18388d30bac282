"""OpenStack through openstacksdk: one client a backend, and the one place that reads its errors.

A client logs in on first use, again in every process that it is forked into, and by itself when
its token has expired. Outages of seconds are waited for here; longer ones are the engine's.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol, Self, TypeVar

import keystoneauth1.exceptions as keystone
import openstack
from openstack import exceptions as sdk
from openstack.connection import Connection
from pydantic import Field, SecretStr, model_validator
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from worker.errors import ErrorCode, Fatal, ObjectKind, Retryable, StepError
from worker.model import RequestContext, ShareServer
from worker.plugin import Options

Answer = TypeVar("Answer")

ATTEMPTS: Final = 3
"""Of one call, within seconds; a service that is away for longer is tried again as a step."""
_UNAUTHORIZED: Final = 401
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_QUOTA: Final = frozenset({"OverQuota", "QuotaExceeded", "QuotaResourceUnknown"})
_NO_ADDRESS: Final = frozenset(
    {"IpAddressGenerationFailure", "IpAddressGenerationFailureNoMatchingSubnet"}
)
_FULL: Final = re.compile(r"no valid host|quota|over limit", re.IGNORECASE)
"""Nova has no names for its errors: a machine's fault, and the text of a 403 or 413."""
_OVER_QUOTA: Final = frozenset({403, 413})
_NODE_LOCKED: Final = "is locked by host"
"""Ironic has no name for it: a conductor works on the node, usually for less than a second."""


class Missing(Fatal):
    """The requested object does not exist (404); the caller decides whether that is an error."""


class Taken(Fatal):
    """What the call wants is in use or exists already (409).

    ``reason`` is the service's own word for it, such as ``MacAddressInUse``.
    """

    def __init__(self, message: str, *, reason: str, object: str, code: ErrorCode) -> None:
        super().__init__(message, object=object, code=code)
        self.reason = reason


class Blip(Retryable):
    """The service is not reached, or busy: often over within seconds."""


class OpenStackOptions(Options):
    """Options of a backend's login to OpenStack."""

    cloud: str | None = Field(
        None, description="A cloud's name in clouds.yaml; then no other option of the login."
    )
    auth_url: str | None = Field(None, description="Keystone's URL, such as `https://host/v3`.")
    username: str | None = Field(None, description="The service user.")
    password: SecretStr | None = Field(None, description="The service user's password.")
    project_name: str | None = Field(None, description="The service user's project.")
    user_domain_name: str = Field("Default", description="The user's domain.")
    project_domain_name: str = Field("Default", description="The project's domain.")
    region_name: str | None = Field(None, description="The region; empty: the catalog's only one.")
    interface: str = Field(
        "internal", pattern="^(public|internal|admin)$", description="Which endpoints are used."
    )
    cafile: str | None = Field(None, description="CA certificates that the endpoints' are made by.")
    timeout: float = Field(30.0, gt=0, description="Seconds that one call may take.")

    @model_validator(mode="after")
    def _one_way_to_log_in(self) -> Self:
        login = ("auth_url", "username", "password", "project_name")
        given = [name for name in login if getattr(self, name) is not None]
        if self.cloud is not None and given:
            raise ValueError(f"cloud is given, and {', '.join(given)} too; leave out either")
        if self.cloud is None and len(given) < len(login):
            absent = ", ".join(name for name in login if name not in given)
            raise ValueError(f"give {absent}, or the name of a cloud in clouds.yaml")
        return self


class OpenStack:
    """Calls OpenStack for one backend.

    ``code`` is what failures are called for this client's user: ``network_failed`` or
    ``compute_failed``. Every error is a :class:`~worker.errors.StepError` in a sentence that
    contains no secret.
    """

    def __init__(self, options: OpenStackOptions, code: ErrorCode) -> None:
        # Helpers that log in alike share a connection, whatever else their options are.
        login = options.model_dump(include=set(OpenStackOptions.model_fields))
        self._options = OpenStackOptions.model_validate(login)
        self._code = code

    def ask(self, doing: str, call: Callable[[Connection], Answer], *, about: str) -> Answer:
        """Make a call that changes nothing. ``doing`` completes "could not ...".

        Raises :class:`Missing`, :class:`Taken`, :class:`~worker.errors.Fatal` or
        :class:`~worker.errors.Retryable`, all about the object ``about``.
        """
        return self.change(doing, call, about=about, guard=lambda: None)

    def change(
        self,
        doing: str,
        call: Callable[[Connection], Answer],
        *,
        about: str,
        guard: Callable[[], None],
    ) -> Answer:
        """Make a call that may be repeated; ``guard`` is asked before each attempt.

        Raises as :meth:`ask`.
        """

        def once() -> Answer:
            guard()
            try:
                return call(_connection(self._options, os.getpid()))
            except (sdk.SDKException, keystone.ClientException) as error:
                _translate(error, f"OpenStack could not {doing}", about, self._code)

        return Retrying(
            retry=retry_if_exception_type(Blip),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.3, max=2),
            reraise=True,
        )(once)


class ServerCalls:
    """A helper's calls for one share server, in one attempt; changing calls ask the guard first."""

    def __init__(self, cloud: OpenStack, context: RequestContext, server: ShareServer) -> None:
        self._cloud = cloud
        self._context = context
        self.server = server
        self.about = ObjectKind.SHARE_SERVER.ref(server.id)

    def ask(self, doing: str, call: Callable[[Connection], Answer]) -> Answer:
        """Call :meth:`OpenStack.ask` for this share server."""
        return self._cloud.ask(doing, call, about=self.about)

    def change(self, doing: str, call: Callable[[Connection], Answer]) -> Answer:
        """Call :meth:`OpenStack.change` for this share server, with the guard."""
        return self._cloud.change(doing, call, about=self.about, guard=self._context.guard)


@functools.lru_cache(maxsize=64)
def _connection(options: OpenStackOptions, _process: int) -> Connection:
    """Log in lazily; a child of a fork has a connection of its own."""
    common: dict[str, Any] = {
        "api_timeout": options.timeout,
        "interface": options.interface,
        "app_name": "sharewright",
        # openstacksdk would try again by itself, for 15 s and without asking the guard.
        "baremetal_status_code_retries": 0,
    }
    if options.region_name is not None:
        common["region_name"] = options.region_name
    if options.cafile is not None:
        common["cacert"] = options.cafile
    if options.cloud is not None:
        return openstack.connect(cloud=options.cloud, **common)
    assert options.password is not None, "validated"
    return openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth={
            "auth_url": options.auth_url,
            "username": options.username,
            "password": options.password.get_secret_value(),
            "project_name": options.project_name,
            "user_domain_name": options.user_domain_name,
            "project_domain_name": options.project_domain_name,
        },
        **common,
    )


def _translate(error: Exception, failed: str, about: str, code: ErrorCode) -> NoReturn:
    """Translate an error of openstacksdk or keystoneauth into an error of the engine."""
    raise _meaning(error, failed, about, code) from error


def _meaning(error: Exception, failed: str, about: str, code: ErrorCode) -> StepError:
    if isinstance(error, sdk.HttpException) and error.status_code is not None:
        return _answered(error, error.status_code, failed, about, code)
    if isinstance(error, keystone.Unauthorized | keystone.Forbidden):
        return Fatal(
            f"{failed}: Keystone refuses the login; correct the backend's user, password and "
            f"project.",
            object=about,
            code=ErrorCode.CONFIGURATION,
        )
    if isinstance(error, keystone.ConnectTimeout):
        return Retryable(f"{failed}: no answer came in time.", object=about, code=ErrorCode.TIMEOUT)
    if isinstance(error, keystone.HttpError) and error.http_status not in _BUSY:
        return Fatal(f"{failed}: Keystone answers {error.http_status}.", object=about, code=code)
    if isinstance(error, sdk.ConfigException | keystone.EndpointNotFound | sdk.EndpointNotFound):
        return Fatal(
            f"{failed}: the cloud, region, interface or service that the backend is configured "
            f"for is not there ({type(error).__name__}).",
            object=about,
            code=ErrorCode.CONFIGURATION,
        )
    return Blip(f"{failed}: it is not reached ({type(error).__name__}).", object=about)


def _answered(
    error: sdk.HttpException, status: int, failed: str, about: str, code: ErrorCode
) -> StepError:
    """Return the error for an answer with an HTTP status of 400 or more."""
    reason = _reason(error)
    said = str(error.details or "").strip().splitlines()
    sentence = f"{failed}: {said[0].rstrip('.') if said else f'HTTP status {status}'}."
    if status == _UNAUTHORIZED:
        # keystoneauth has logged in again already, and that token was refused too.
        return Retryable(f"{failed}: a token that was just issued is refused.", object=about)
    if status in _BUSY:
        return Blip(f"{failed}: it answers {status}.", object=about)
    if reason in _QUOTA or (status in _OVER_QUOTA and no_room(sentence)):
        return Fatal(
            f"{sentence} Raise the quota of the backend's project, or delete what is not needed.",
            object=about,
            code=ErrorCode.COMPUTE_EXHAUSTED if code is ErrorCode.COMPUTE_FAILED else code,
        )
    if reason in _NO_ADDRESS:
        return Fatal(sentence, object=about, code=ErrorCode.ADDRESSES_EXHAUSTED)
    if isinstance(error, sdk.NotFoundException):
        return Missing(sentence, object=about, code=code)
    if isinstance(error, sdk.ConflictException) and _NODE_LOCKED in sentence:
        return Blip(sentence, object=about)
    if isinstance(error, sdk.ConflictException):
        return Taken(sentence, reason=reason, object=about, code=code)
    if isinstance(error, sdk.ForbiddenException):
        return Fatal(
            f"{sentence} Give the backend's user a role that may do it.", object=about, code=code
        )
    return Fatal(sentence, object=about, code=code)


def _reason(error: sdk.HttpException) -> str:
    """Return Neutron's name of the error, such as ``OverQuota``, or an empty string."""
    if error.response is None:
        return ""
    try:
        document = error.response.json()
    except ValueError:
        return ""
    detail = document.get("NeutronError") if isinstance(document, dict) else None
    return str(detail.get("type", "")) if isinstance(detail, dict) else ""


def no_room(said: str) -> bool:
    """Return whether Nova's message means that no host or quota is left for a machine."""
    return _FULL.search(said) is not None


def seconds(moment: str | None) -> float | None:
    """Return OpenStack's time as seconds since the epoch; without a time zone it is UTC."""
    if moment is None:
        return None
    at = datetime.fromisoformat(moment)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


class _Named(Protocol):
    id: Any


Thing = TypeVar("Thing", bound=_Named)


def only(kind: str, named: str, found: Sequence[Thing], about: str) -> Thing:
    """Return the one object with a name or id; refuse none and several."""
    things = {thing.id: thing for thing in found}
    if len(things) == 1:
        return next(iter(things.values()))
    problem = (
        f"OpenStack has no {kind} {named}; correct the name, or make it"
        if not things
        else f"OpenStack has {len(things)} things that {kind} {named} may be "
        f"({', '.join(sorted(things))}); give an id"
    )
    raise Fatal(f"{problem}.", object=about, code=ErrorCode.CONFIGURATION)
