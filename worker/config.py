"""The configuration file ``sharewright.toml``, validated into frozen objects.

The file is ``$SHAREWRIGHT_CONFIG``, or else ``/etc/sharewright/sharewright.toml``. Environment
variables such as ``SHAREWRIGHT_DATABASE__URL=...`` override single values (for containers).
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from worker.errors import ConfigurationError
from worker.model import ID_LENGTH, DriverMode, QuotaResource

ENVIRONMENT_PREFIX: Final = "SHAREWRIGHT_"
CONFIG_VARIABLE: Final = "SHAREWRIGHT_CONFIG"
DEFAULT_PATH: Final = Path("/etc/sharewright/sharewright.toml")
_SAFE_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]*")
_BACKEND_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DATABASES: Final = ("sqlite", "postgresql+psycopg")


def usable_path(path: Path) -> Path:
    """Return the path; refuse characters that file servers cannot handle in a path."""
    if not _SAFE_PATH.fullmatch(str(path)):
        raise ValueError(
            f"{str(path)!r} cannot be used; give an absolute path of letters, digits and ._-/ only"
        )
    return path


def _readable_url(url: str) -> str:
    """Return the URL; refuse one without percent-encoding, which would be split wrongly."""
    scheme, found, rest = url.partition("://")
    if not found or not scheme:
        raise ValueError("is no URL; it begins with a scheme and ://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    try:
        port_is_number = authority == "" or (urlsplit(url).port or 0) >= 0
    except ValueError:
        port_is_number = "," in authority or ";" in rest  # several hosts
    leftover = authority and "@" not in authority and "@" in rest.partition("?")[0]
    if authority.count("@") > 1 or leftover or not port_is_number:
        raise ValueError(
            "cannot be taken apart; percent-encode user and password: @ is %40, / is %2F, "
            ": is %3A, # is %23, ? is %3F and % is %25"
        )
    return url


def _database_url(url: str) -> str:
    if _readable_url(url).partition(":")[0] not in _DATABASES:
        raise ValueError(f"begins with neither {' nor '.join(f'{name}://' for name in _DATABASES)}")
    return url


_Url = Annotated[str, AfterValidator(_readable_url)]


def masked(url: str) -> str:
    """Return the URL with its password replaced by ``***``, for messages and logs."""
    without = re.sub(r"(://[^/@:]*):.*@", r"\1:***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", without, flags=re.IGNORECASE)


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite database; None for other and for in-memory databases."""
    path = url.partition("?")[0].removeprefix("sqlite:///")
    return Path(path) if url.startswith("sqlite:///") and path not in {"", ":memory:"} else None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    """Database settings."""

    url: Annotated[str, AfterValidator(_database_url)] = Field(
        "sqlite:////var/lib/sharewright/sharewright.db",
        description="SQLAlchemy URL: `sqlite:///...` on one host, or `postgresql+psycopg://...`.",
    )


class BrokerSettings(_Section):
    """Settings of the broker and the result backend."""

    url: _Url = Field("redis://127.0.0.1:6379/0", description="Celery broker URL.")
    result_backend: _Url = Field(
        "redis://127.0.0.1:6379/1", description="Celery result backend URL."
    )
    result_expires: int = Field(
        86400,
        gt=0,
        description="Seconds for which a result can be fetched; `operation show` has it longer.",
    )
    read_result_expires: int = Field(
        300, gt=0, description="Seconds for which the answer to a read can be fetched."
    )
    visibility_timeout: int = Field(
        120,
        ge=5,
        description="Seconds after which Redis delivers an unacknowledged message again. "
        "May be shorter than a step: the database rejects duplicates.",
    )
    max_message_bytes: int = Field(
        262144, ge=1024, description="Larger messages are stored as dead letters."
    )
    dead_letters_per_hour: int = Field(
        200,
        ge=1,
        description="Dead letters of one queue that a process stores per hour; further ones are "
        "dropped and only counted.",
    )


class EngineSettings(_Section):
    """Waits, retries and clean-up of the engine. In seconds, unless a name says otherwise."""

    lease: float = Field(
        20.0, gt=0, description="How long a worker owns a step without renewing its lease."
    )
    queued_limit: float = Field(
        600.0, gt=0, description="How long a message may be queued before it is sent again."
    )
    retry_time: float = Field(
        600.0,
        ge=0,
        description="How long a failing undoable step is retried before it is undone.",
    )
    undo_retry_time: float = Field(
        600.0,
        ge=0,
        description="How long a failing forward-only step or undo is retried before the object's "
        "status becomes an error.",
    )
    max_crashes: int = Field(
        10,
        ge=1,
        description="How often a step may begin without reporting an end (because it crashes its "
        "worker) before it fails.",
    )
    retry_pause: float = Field(1.0, gt=0, description="First pause after a failure; it doubles.")
    retry_pause_max: float = Field(60.0, gt=0, description="Longest pause after a failure.")
    failed_undo_pause: float = Field(
        600.0, gt=0, description="Pause between attempts once `undo_retry_time` is over."
    )
    watchdog: float = Field(
        60.0,
        gt=0,
        description="A process with a main loop or pass that hangs for so long ends itself; its "
        "supervisor starts it again.",
    )
    wait_limit: float = Field(1800.0, gt=0, description="How long one step may wait in total.")
    builder_failures: int = Field(
        3, ge=1, description="Failed builders in a row after which all waiters fail."
    )
    address_rest: float = Field(
        720.0, ge=0, description="How long a released address rests before it is allocated again."
    )
    max_queued_operations: int = Field(
        2000, ge=1, description="Operations that may be queued behind one object."
    )
    redrive_batch: int = Field(300, ge=1, description="Messages a reconciler pass may publish.")
    unused_share_server_cleanup_interval: float = Field(
        0.0,
        ge=0,
        description="How long an unused share server is kept; 0: deleted with its last share.",
    )
    keep_failed_share_servers: float = Field(
        7 * 86400.0,
        gt=0,
        description="How long a share server whose build failed is still shown, with the reason.",
    )
    report_interval: float = Field(
        30.0, gt=0, description="Interval between reports of storage pools."
    )
    report_expiry: float = Field(
        120.0, gt=0, description="A backend whose last report is older is `down`."
    )
    audit_interval: float = Field(
        3600.0,
        ge=0,
        description="Interval between audits of the external systems; 0: only on demand.",
    )
    audit_grace: float = Field(
        900.0,
        gt=0,
        description="How old an orphan must be before it is removed; longer than a lease and the "
        "longest step.",
    )
    audit_repair: bool = Field(
        False, description="Whether periodic audits remove orphans or only report them."
    )
    keep_operations: float = Field(
        30 * 86400.0, gt=0, description="How long ended operations and idempotency keys are kept."
    )
    keep_dead_letters: float = Field(
        30 * 86400.0, gt=0, description="How long dead letters are kept."
    )
    max_share_size: int = Field(
        65536, ge=1, description="Largest share that may be requested, in GiB."
    )
    max_over_subscription_ratio: float = Field(
        1.0, gt=0, description="Allowed ratio of a pool's allocated GiB to its total."
    )


class GroupSettings(_Section):
    """Settings of a worker group: the workers that may run a backend's steps."""

    queues: int = Field(
        1,
        ge=1,
        le=100,
        description="Number of queues over which the group's backends are distributed.",
    )


class BackendSettings(_Section):
    """Settings of a backend: the entry points of its parts, and their unvalidated options."""

    mode: DriverMode = Field(description="`single_svm`, `flat_multi_svm` or `managed_multi_svm`.")
    share_driver: str = Field(description="Name of a share driver.")
    compute_helper: str | None = Field(None, description="Name of a compute helper.")
    network_helpers: tuple[str, ...] = Field((), description="Names of network helpers.")
    group: str = Field("default", description="The worker group that runs its steps.")
    host: str | None = Field(
        None,
        description="The host of a host-bound part. The host's worker group then runs the steps; "
        "leave `group` out.",
    )
    share_network_addresses: bool = Field(
        False,
        description="`flat_multi_svm`: serve `flat_pool` and `dhcp` share networks with the "
        "addresses that they name.",
    )
    max_shares_per_share_server: int = Field(
        0, ge=0, description="Most shares on one share server; 0: no limit."
    )
    max_share_server_size: int = Field(
        0, ge=0, description="Most GiB on one share server; 0: none."
    )
    capabilities: dict[str, str] = Field(
        default_factory=dict,
        description="Capabilities added to those that the driver reports, for extra specs.",
    )
    driver: dict[str, Any] = Field(default_factory=dict, description="Options of the share driver.")
    compute: dict[str, Any] = Field(
        default_factory=dict, description="Options of the compute helper."
    )
    network: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of each network helper, by its name."
    )

    @property
    def worker_group(self) -> str:
        """The group of the workers that run this backend's steps."""
        return f"host.{self.host}" if self.host else self.group


class SecretsSettings(_Section):
    """Settings of the keys that seal the passwords of security services."""

    directory: Path = Field(
        Path("/etc/sharewright/secrets"),
        description="Directory of the keys. Workers need all its files; schedulers only `*.pub` "
        "and `current`.",
    )


class HealthSettings(_Section):
    """Settings of the port for `/healthz`, `/readyz` and `/metrics`."""

    address: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8776, ge=0, le=65535, description="Port; 0 picks a free one.")


class QuotaSettings(_Section):
    """Default quota of a project; -1 means no limit."""

    shares: int = Field(-1, ge=-1, description="Number of shares.")
    gigabytes: int = Field(-1, ge=-1, description="Total GiB of shares.")
    snapshots: int = Field(-1, ge=-1, description="Number of snapshots.")
    snapshot_gigabytes: int = Field(-1, ge=-1, description="Total GiB of snapshots.")
    share_networks: int = Field(-1, ge=-1, description="Number of share networks.")

    @property
    def maximums(self) -> dict[QuotaResource, int]:
        """The default limits by resource."""
        return {resource: getattr(self, resource.value) for resource in QuotaResource}


class LogSettings(_Section):
    """Log settings."""

    level: str = Field("INFO", description="Python log level.")
    format: str = Field("text", pattern="^(text|json)$", description="`text` or `json`.")


class Config(_Section):
    """The whole configuration file."""

    state_dir: Annotated[Path, AfterValidator(usable_path)] = Field(
        Path("/var/lib/sharewright"),
        description="Directory for files that outlive this host's workers.",
    )
    default_share_network_id: str | None = Field(
        None, description="Public share network for requests that name none."
    )
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    secrets: SecretsSettings = Field(default_factory=SecretsSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    quotas: QuotaSettings = Field(default_factory=QuotaSettings)
    groups: dict[str, GroupSettings] = Field(default_factory=dict)
    backends: dict[str, BackendSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        for name in self.backends:
            if not 0 < len(name) <= ID_LENGTH:
                raise ValueError(
                    f"the name of backend {name!r} has {len(name)} characters; give it 1 to "
                    f"{ID_LENGTH}: operations on a backend name it as their object"
                )
            if not _BACKEND_NAME.fullmatch(name):
                raise ValueError(
                    f"the name of backend {name!r} cannot be used: it becomes a part of paths and "
                    f"queues; give it letters, digits and ._- only, with no sign at its beginning"
                )
        return self

    @model_validator(mode="after")
    def _a_host_decides_the_group(self) -> Config:
        for name, backend in self.backends.items():
            if backend.host and "group" in backend.model_fields_set:
                raise ValueError(
                    f"backend {name!r} names both host and group; leave group out: a backend that "
                    f"is bound to a host is served by that host's group"
                )
        return self

    def group(self, name: str) -> GroupSettings:
        """Return a worker group's settings; the defaults if the file does not mention it."""
        return self.groups.get(name, GroupSettings())

    def backend(self, name: str) -> BackendSettings:
        """Return a backend's settings.

        Raises :class:`~worker.errors.ConfigurationError` for a backend that the file lacks.
        """
        settings = self.backends.get(name)
        if settings is None:
            raise ConfigurationError(
                f"Backend {name!r} is not in the configuration, and shares, share servers or "
                f"operations refer to it. Put it back under that name."
            )
        return settings

    def backends_of(self, group: str) -> dict[str, BackendSettings]:
        """Return the settings of the backends that a worker group serves, by name."""
        return {n: b for n, b in self.backends.items() if b.worker_group == group}


def load(path: Path | None = None) -> Config:
    """Read and validate the configuration; the environment overrides single values.

    Raises :class:`~worker.errors.ConfigurationError` with one line per problem.
    """
    named = path or configured_path()
    document: dict[str, Any] = {}
    if named is not None:
        try:
            document = tomllib.loads(named.read_text())
        except OSError as error:
            raise ConfigurationError(
                f"Cannot read the configuration {named}: {error.strerror}."
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{named} is not valid TOML: {error}.") from error
    return from_document(document, str(named or "(environment)"))


def from_document(document: dict[str, Any], source: str) -> Config:
    """Validate a file's content; the environment overrides single values.

    Raises :class:`~worker.errors.ConfigurationError` with one line per problem.
    """
    _apply_environment(document)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(
            f"The configuration {source} cannot be used:\n"
            + "\n".join(f"  {sentence}" for sentence in describe(error))
        ) from error


def describe(error: ValidationError) -> list[str]:
    """Return one sentence per problem, with the option's name but no values: they may be secret."""
    return [
        f"{'.'.join(str(part) for part in item['loc']) or 'value'}: {problem(item)}"
        for item in error.errors(include_url=False, include_input=False)
    ]


_PROBLEMS: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not known; check its spelling",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} or fewer characters",
    "string_pattern_mismatch": "must match {pattern}",
    "string_type": "must be text",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a table of names and values",
    "model_type": "must be a table of names and values",
    "model_attributes_type": "must be a table of names and values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "path_type": "must be a path",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}
"""Pydantic's error types as sentences that follow the name of an option or a field."""


def problem(item: Mapping[str, Any]) -> str:
    """Describe one entry of a ``ValidationError`` without pydantic's own terms."""
    wanted = _PROBLEMS.get(item["type"])
    return wanted.format(**item.get("ctx", {})) if wanted else str(item["msg"])


def this_host() -> str:
    """Return this machine's name, as host-bound backends give it in ``host``."""
    return os.environ.get("SHAREWRIGHT_HOST") or socket.gethostname()


def configured_path() -> Path | None:
    """Return the configuration file that :func:`load` reads, or None."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def _apply_environment(document: dict[str, Any]) -> None:
    """Apply variables ``SHAREWRIGHT_<SECTION>__<OPTION>``; ignore names without ``__``."""
    for variable, value in os.environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        *sections, option = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
        target[option] = value
