"""Assembly of a backend from its driver and helpers, with checks when a worker starts.

Drivers and helpers are found by their entry points (``pyproject.toml``), and each validates its
options with its own model. An unusable combination raises a
:class:`~worker.errors.ConfigurationError` that says what to change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final, cast

from pydantic import ValidationError

from worker.backends.network_kinds import served_kinds, service
from worker.config import BackendSettings, Config, describe, this_host
from worker.drivers.base import ShareDriver
from worker.errors import ConfigurationError, Fatal, Retryable
from worker.helpers.compute.base import ComputeHelper, Reachable
from worker.helpers.network.base import AddressStore, NetworkHelper
from worker.model import DriverMode, NetworkKind, ShareServer
from worker.plugin import BackendContext, Checked, Options
from worker.systems.shell.base import Shell
from worker.systems.shell.local import LocalShell

DRIVERS: Final = "sharewright.share_drivers"
COMPUTE: Final = "sharewright.compute_helpers"
NETWORK: Final = "sharewright.network_helpers"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """A configured storage system with its driver and helpers."""

    name: str
    settings: BackendSettings
    driver: ShareDriver
    compute: ComputeHelper | None
    networks: tuple[NetworkHelper, ...]

    @property
    def mode(self) -> DriverMode:
        """The configured mode."""
        return self.settings.mode

    @property
    def ports_per_server(self) -> int:
        """Number of addresses of a share server: the larger need of driver and compute helper."""
        helper = self.compute.ports_per_server if self.compute else 0
        return max(helper, self.driver.ports_per_server)

    @property
    def network_kinds(self) -> frozenset[NetworkKind]:
        """The kinds of share network that the backend accepts."""
        return served_kinds(
            self.mode,
            self.networks,
            share_network_addresses=self.settings.share_network_addresses,
        )

    def network_helper(self, kind: NetworkKind) -> NetworkHelper | None:
        """Return the network helper for share networks of a kind, or None."""
        return service(
            self.mode,
            self.networks,
            kind,
            share_network_addresses=self.settings.share_network_addresses,
        ).helper


@cache
def _installed(group: str) -> Mapping[str, Any]:
    return {point.name: point for point in entry_points(group=group)}


def plugin_class(group: str, name: str, backend: str) -> Any:
    """Load the class of a driver or helper by the name of its entry point."""
    found = _installed(group).get(name)
    if found is None:
        kind = group.removeprefix("sharewright.").replace("_", " ").removesuffix("s")
        known = ", ".join(sorted(_installed(group))) or "none"
        raise ConfigurationError(
            f"Backend {backend!r}: there is no {kind} {name!r}; installed are: {known}."
        )
    return found.load()


def assemble(config: Config, name: str, addresses: AddressStore) -> Backend:
    """Create a backend from its settings.

    Raises :class:`~worker.errors.ConfigurationError` when its parts cannot work together.
    """
    settings = config.backends.get(name)
    if settings is None:
        raise ConfigurationError(f"There is no backend {name!r} in the configuration.")
    driver_class: type[ShareDriver] = plugin_class(DRIVERS, settings.share_driver, name)
    compute_class: type[ComputeHelper] | None = (
        plugin_class(COMPUTE, settings.compute_helper, name) if settings.compute_helper else None
    )
    network_classes: list[type[NetworkHelper]] = [
        plugin_class(NETWORK, helper, name) for helper in settings.network_helpers
    ]
    check_parts(name, settings, driver_class, compute_class, network_classes)
    given = BackendContext(
        name=name,
        mode=settings.mode,
        state_dir=config.state_dir / "backends" / name,
        share_network_addresses=settings.share_network_addresses,
        servers_elsewhere=compute_class is not None and not compute_class.host_bound,
    )
    compute = None
    if compute_class is not None:
        options = _options(compute_class.OptionsModel, settings.compute, name, "compute")
        compute = compute_class(given, options)
    networks = tuple(
        helper(
            given,
            _options(helper.OptionsModel, settings.network.get(key, {}), name, f"network.{key}"),
            addresses,
        )
        for key, helper in zip(settings.network_helpers, network_classes, strict=True)
    )

    def shell_for(server: ShareServer | None) -> Shell:
        if server is None:
            return LocalShell(None)
        # check_parts has refused a driver that needs a shell without a helper that has one.
        return cast("Reachable", compute).shell(server)

    driver = driver_class(
        given,
        _options(driver_class.OptionsModel, settings.driver, name, "driver"),
        shell_for,
    )
    return Backend(name, settings, driver, compute, networks)


def check(backend: Backend) -> None:
    """Check the parts' options against the external systems, before the worker consumes messages.

    Raises :class:`~worker.errors.ConfigurationError` when an object named in the options is
    missing. An external system that cannot be asked is only logged: steps on it are retried.
    """
    parts: tuple[object, ...] = (backend.driver, backend.compute, *backend.networks)
    for part in parts:
        if not isinstance(part, Checked):
            continue
        try:
            part.check()
        except Fatal as error:
            raise ConfigurationError(f"Backend {backend.name!r}: {error.message}") from error
        except Retryable as error:
            _log.warning("Backend %s could not be checked: %s", backend.name, error.message)


def _options(model: type[Options], given: Mapping[str, Any], backend: str, part: str) -> Options:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigurationError(
            f"Backend {backend!r} cannot use its options [backends.{backend}.{part}]: "
            + "; ".join(describe(error))
        ) from error


def check_parts(
    name: str,
    settings: BackendSettings,
    driver: type[ShareDriver],
    compute: type[ComputeHelper] | None,
    networks: list[type[NetworkHelper]],
) -> None:
    """Refuse parts that cannot work together, with one sentence per reason."""
    helpers = dict(zip(settings.network_helpers, networks, strict=True))
    reasons = [
        *_mode_problems(settings, driver, compute, helpers),
        *_helper_problems(settings, helpers),
        *_port_problems(settings, compute, helpers),
        *_host_problems(settings, driver, [*([compute] if compute else []), *networks]),
    ]
    if compute is None and settings.compute:
        reasons.append("options for a compute helper are given, but none is named.")
    if reasons:
        raise ConfigurationError(f"Backend {name!r}: " + " ".join(reasons))


def _mode_problems(
    settings: BackendSettings,
    driver: type[ShareDriver],
    compute: type[ComputeHelper] | None,
    helpers: Mapping[str, type[NetworkHelper]],
) -> Iterator[str]:
    mode = settings.mode
    if mode not in driver.modes:
        yield (
            f"share driver {settings.share_driver!r} does not support mode {mode}; "
            f"it supports {', '.join(sorted(driver.modes))}."
        )
    if not mode.has_share_servers:
        if compute is not None or helpers:
            yield (
                f"mode {mode} uses a server that exists already; leave compute_helper and "
                f"network_helpers out, or choose another mode."
            )
        return
    if compute is None:
        yield f"mode {mode} makes share servers; name a compute_helper."
    elif mode not in compute.modes:
        yield f"compute helper {settings.compute_helper!r} does not support mode {mode}."
    elif driver.needs_shell and not issubclass(compute, Reachable):
        yield (
            f"share driver {settings.share_driver!r} gives commands to its share servers, and "
            f"those of compute helper {settings.compute_helper!r} take none."
        )
    if not helpers:
        yield f"mode {mode} allocates addresses; name at least one of network_helpers."


def _helper_problems(
    settings: BackendSettings, helpers: Mapping[str, type[NetworkHelper]]
) -> Iterator[str]:
    served: set[NetworkKind] = set()
    for key, helper in helpers.items():
        if settings.mode.has_share_servers and settings.mode not in helper.modes:
            yield f"network helper {key!r} does not support mode {settings.mode}."
        if served & helper.kinds:
            yield (
                f"two network helpers serve share networks of kind "
                f"{', '.join(sorted(served & helper.kinds))}; name one of them."
            )
        served |= helper.kinds
    for key in helpers:
        if settings.network_helpers.count(key) > 1:
            yield f"network helper {key!r} is named twice; name it once."
    for key in settings.network:
        if key not in helpers:
            yield f"options for network helper {key!r} are given, but it is not named."


def _port_problems(
    settings: BackendSettings,
    compute: type[ComputeHelper] | None,
    helpers: Mapping[str, type[NetworkHelper]],
) -> Iterator[str]:
    if compute is None or not compute.needs_ports:
        return
    for key, helper in helpers.items():
        if not helper.gives_ports:
            yield (
                f"compute helper {settings.compute_helper!r} attaches its servers to ports of "
                f"Neutron, and network helper {key!r} makes none; name neutron instead."
            )


def _host_problems(
    settings: BackendSettings, driver: type[ShareDriver], helpers: list[Any]
) -> Iterator[str]:
    # In single_svm, commands for the share server run on this host.
    on_this_host = driver.needs_shell and not settings.mode.has_share_servers
    bound = ", ".join(
        [driver.__name__] * (driver.host_bound or on_this_host)
        + [helper.__name__ for helper in helpers if helper.host_bound]
    )
    if bound and settings.host is None:
        yield f"{bound} works on one host only; name it as `host`."
    elif bound and settings.host != this_host():
        yield (
            f"it is bound to host {settings.host!r} by {bound}, and this is {this_host()!r}; "
            f"run the workers of group {settings.worker_group!r} there."
        )
