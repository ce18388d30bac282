"""Combinations of a backend's parts that cannot work are refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from worker.backends import assembly as module
from worker.backends.assembly import COMPUTE, DRIVERS, NETWORK, assemble
from worker.config import Config
from worker.drivers.base import ShareDriver
from worker.errors import ConfigurationError
from worker.helpers.compute.base import ComputeHelper, Reachable
from worker.helpers.network.base import NetworkHelper
from worker.model import (
    DriverMode,
    ExportLocation,
    NetworkInfo,
    NetworkKind,
    RequestContext,
    Share,
    ShareServer,
    ShareServerDetails,
    StoragePool,
)
from worker.plugin import Options
from worker.systems.shell.base import Shell
from worker.systems.shell.local import LocalShell

FLAT, MANAGED, SINGLE = (
    DriverMode.FLAT_MULTI_SVM,
    DriverMode.MANAGED_MULTI_SVM,
    DriverMode.SINGLE_SVM,
)


class OneOption(Options):
    colour: str = Field("blue", description="For the test.")


class Driver(ShareDriver):
    """Does nothing; what is tested is what it declares."""

    modes = frozenset(DriverMode)
    OptionsModel = OneOption

    def create_share(self, *_: Any) -> tuple[ExportLocation, ...]:
        return ()

    def create_share_from_snapshot(self, *_: Any) -> tuple[ExportLocation, ...]:
        return ()

    def delete_share(self, context: RequestContext, share: Share, server: Any) -> None: ...

    def create_snapshot(self, *_: Any) -> None: ...

    def delete_snapshot(self, *_: Any) -> None: ...

    def update_access(self, *_: Any) -> None: ...

    def storage_pools(self, _context: RequestContext) -> tuple[StoragePool, ...]:
        return ()


class SingleDriver(Driver):
    modes = frozenset({SINGLE})


class LocalDriver(Driver):
    host_bound = True
    ports_per_server = 2


class CommandingDriver(Driver):
    needs_shell = True


class Compute(ComputeHelper):
    OptionsModel = OneOption

    def get_share_server(self, *_: Any) -> ShareServerDetails:
        return ShareServerDetails("a server", ())

    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None: ...


class ReachableCompute(Compute, Reachable):
    def shell(self, share_server: ShareServer) -> Shell:
        return LocalShell(share_server.id)


class LocalCompute(ReachableCompute):
    host_bound = True


class FlatCompute(Compute):
    modes = frozenset({FLAT})
    ports_per_server = 3


class PortCompute(Compute):
    needs_ports = True


class Network(NetworkHelper):
    OptionsModel = OneOption
    kinds = frozenset({NetworkKind.FLAT_POOL})
    modes: ClassVar[frozenset[DriverMode]] = frozenset({FLAT, MANAGED})

    def allocate_network(self, *_: Any, **_options: str) -> NetworkInfo:
        return NetworkInfo("10.0.0.0/24", "255.255.255.0", 24, 4, None, None, ("10.0.0.2",))

    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None: ...


class DhcpNetwork(Network):
    kinds = frozenset({NetworkKind.DHCP})
    host_bound = True


class NeutronNetwork(Network):
    kinds = frozenset({NetworkKind.NEUTRON, NetworkKind.NOVA})
    modes = frozenset({MANAGED})
    gives_ports = True


class Point:
    """An entry point, as importlib.metadata would give it."""

    def __init__(self, found: type) -> None:
        self.load = lambda: found


INSTALLED: dict[str, dict[str, type]] = {
    DRIVERS: {
        "any": Driver,
        "single": SingleDriver,
        "local": LocalDriver,
        "commanding": CommandingDriver,
    },
    COMPUTE: {
        "plain": Compute,
        "reachable": ReachableCompute,
        "local": LocalCompute,
        "flat_only": FlatCompute,
        "on_ports": PortCompute,
    },
    NETWORK: {"flat": Network, "flat2": Network, "dhcp": DhcpNetwork, "neutron": NeutronNetwork},
}


class NoAddresses:
    """An address book for backends that are only put together."""

    def held(self, *_: Any) -> tuple[str, ...]:
        raise AssertionError

    def take(self, *_: Any) -> tuple[str, ...]:
        raise AssertionError

    def release(self, *_: Any) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "_installed",
        lambda group: {name: Point(found) for name, found in INSTALLED[group].items()},
    )
    monkeypatch.setenv("SHAREWRIGHT_HOST", "here")


def put_together(tmp_path: Path, **settings: Any) -> module.Backend:
    defaults = {
        "mode": "flat_multi_svm",
        "share_driver": "any",
        "compute_helper": "plain",
        "network_helpers": ["flat"],
    }
    backend = {name: value for name, value in {**defaults, **settings}.items() if value is not None}
    config = Config.model_validate({"state_dir": tmp_path, "backends": {"b1": backend}})
    return assemble(config, "b1", NoAddresses())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"share_driver": "single"},
            "share driver 'single' does not support mode flat_multi_svm; it supports single_svm.",
            id="a mode that the driver lacks",
        ),
        pytest.param(
            {"compute_helper": None},
            "mode flat_multi_svm makes share servers; name a compute_helper.",
            id="no compute helper",
        ),
        pytest.param(
            {"network_helpers": []},
            "mode flat_multi_svm allocates addresses; name at least one of network_helpers.",
            id="no network helper",
        ),
        pytest.param(
            {"mode": "single_svm"},
            "mode single_svm uses a server that exists already; leave compute_helper and "
            "network_helpers out, or choose another mode.",
            id="superfluous helpers",
        ),
        pytest.param(
            {"mode": "single_svm", "network_helpers": []},
            "mode single_svm uses a server that exists already",
            id="a superfluous compute helper",
        ),
        pytest.param(
            {"mode": "single_svm", "compute_helper": None},
            "mode single_svm uses a server that exists already",
            id="a superfluous network helper",
        ),
        pytest.param(
            {"mode": "managed_multi_svm", "compute_helper": "flat_only"},
            "compute helper 'flat_only' does not support mode managed_multi_svm.",
            id="a mode that the compute helper lacks",
        ),
        pytest.param(
            {"network_helpers": ["neutron"]},
            "network helper 'neutron' does not support mode flat_multi_svm.",
            id="a mode that the network helper lacks",
        ),
        pytest.param(
            {"share_driver": "nonsense"},
            "there is no share driver 'nonsense'; installed are: any, commanding, local, single.",
            id="an unknown driver",
        ),
        pytest.param(
            {"compute_helper": "nonsense"},
            "there is no compute helper 'nonsense'; installed are: flat_only, local, on_ports, "
            "plain, reachable.",
            id="an unknown compute helper",
        ),
        pytest.param(
            {"network_helpers": ["flat", "nonsense"]},
            "there is no network helper 'nonsense'; installed are: dhcp, flat, flat2, neutron.",
            id="an unknown network helper",
        ),
        pytest.param(
            {
                "mode": "managed_multi_svm",
                "compute_helper": "on_ports",
                "network_helpers": ["neutron", "flat"],
            },
            "Backend 'b1': compute helper 'on_ports' attaches its servers to ports of Neutron, and "
            "network helper 'flat' makes none; name neutron instead.",
            id="a network helper without ports",
        ),
        pytest.param(
            {"driver": {"color": "red"}},
            "cannot use its options [backends.b1.driver]: color: is not known; check its spelling",
            id="an unknown option of the driver",
        ),
        pytest.param(
            {"compute": {"color": "red"}},
            "cannot use its options [backends.b1.compute]: color:",
            id="an unknown option of the compute helper",
        ),
        pytest.param(
            {"network": {"flat": {"color": "red"}}},
            "cannot use its options [backends.b1.network.flat]: color:",
            id="an unknown option of the network helper",
        ),
        pytest.param(
            {"driver": {"colour": 7}},
            "cannot use its options [backends.b1.driver]: colour:",
            id="an option of the wrong type",
        ),
        pytest.param(
            {"share_driver": "local"},
            "LocalDriver works on one host only; name it as `host`.",
            id="a host-bound driver without a host",
        ),
        pytest.param(
            {"share_driver": "local", "host": "elsewhere"},
            "it is bound to host 'elsewhere' by LocalDriver, and this is 'here'; run the workers "
            "of group 'host.elsewhere' there.",
            id="a host-bound driver on another host",
        ),
        pytest.param(
            {
                "mode": "single_svm",
                "share_driver": "commanding",
                "compute_helper": None,
                "network_helpers": [],
            },
            "CommandingDriver works on one host only; name it as `host`.",
            id="a driver that gives commands to this host without a host",
        ),
        pytest.param(
            {"share_driver": "commanding", "compute_helper": "local"},
            "LocalCompute works on one host only; name it as `host`.",
            id="a host-bound compute helper without a host",
        ),
        pytest.param(
            {"network_helpers": ["dhcp"]},
            "DhcpNetwork works on one host only",
            id="a host-bound network helper without a host",
        ),
        pytest.param(
            {"network_helpers": ["flat", "flat2"]},
            "two network helpers serve share networks of kind flat_pool; name one of them.",
            id="two helpers of one kind",
        ),
        pytest.param(
            {"network_helpers": ["flat", "flat"]},
            "network helper 'flat' is named twice",
            id="one helper twice",
        ),
        pytest.param(
            {"network": {"dhcp": {}}},
            "options for network helper 'dhcp' are given, but it is not named.",
            id="options for an unnamed network helper",
        ),
        pytest.param(
            {
                "mode": "single_svm",
                "compute_helper": None,
                "network_helpers": [],
                "compute": {"colour": "red"},
            },
            "options for a compute helper are given, but none is named.",
            id="options for an unnamed compute helper",
        ),
        pytest.param(
            {"share_driver": "commanding"},
            "share driver 'commanding' gives commands to its share servers, and those of compute "
            "helper 'plain' take none.",
            id="a driver that needs a shell where there is none",
        ),
    ],
)
def test_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        put_together(tmp_path, **settings)
    assert caught.value.message.startswith("Backend 'b1'")
    assert sentence in caught.value.message


def test_every_reason_is_given_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        put_together(tmp_path, share_driver="single", compute_helper=None, network_helpers=[])
    for part in ("does not support", "name a compute_helper", "at least one of network_helpers"):
        assert part in caught.value.message


def test_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no backend 'b2'"):
        assemble(Config(state_dir=tmp_path), "b2", NoAddresses())


def test_a_secret_option_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        put_together(tmp_path, driver={"colour": ["a-planted-secret"]})
    assert "planted" not in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "managed_multi_svm", "network_helpers": ["flat", "neutron"]},
        {"mode": "single_svm", "compute_helper": None, "network_helpers": []},
        {"share_driver": "commanding", "compute_helper": "reachable"},
        {"share_driver": "local", "host": "here"},
        {"driver": {"colour": "red"}, "network": {"flat": {"colour": "green"}}},
    ],
    ids=str,
)
def test_what_works(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert put_together(tmp_path, **settings).name == "b1"


@pytest.mark.parametrize(
    ("settings", "elsewhere"),
    [
        ({"compute_helper": "reachable"}, True),
        ({"compute_helper": "local", "host": "here"}, False),
        (
            {"mode": "single_svm", "compute_helper": None, "network_helpers": [], "host": "here"},
            False,
        ),
    ],
    ids=str,
)
def test_a_driver_is_told_whether_its_servers_are_machines_of_their_own(
    tmp_path: Path, settings: dict[str, Any], *, elsewhere: bool
) -> None:
    backend = put_together(tmp_path, share_driver="commanding", **settings)
    assert backend.driver.backend.servers_elsewhere is elsewhere


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ({}, 1),
        ({"compute_helper": "flat_only"}, 3),
        ({"share_driver": "local", "host": "here"}, 2),
        ({"share_driver": "local", "host": "here", "compute_helper": "flat_only"}, 3),
    ],
    ids=str,
)
def test_the_larger_number_of_ports_wins(
    tmp_path: Path, settings: dict[str, Any], ports: int
) -> None:
    assert put_together(tmp_path, **settings).ports_per_server == ports


K = NetworkKind


def test_the_kind_picks_the_helper(tmp_path: Path) -> None:
    backend = put_together(tmp_path, mode="managed_multi_svm", network_helpers=["flat", "neutron"])
    assert type(backend.network_helper(K.FLAT_POOL)) is Network
    assert type(backend.network_helper(K.NOVA)) is NeutronNetwork
    assert backend.network_helper(K.DHCP) is None
    assert backend.network_helper(K.NONE) is None


def test_a_flat_backend_serves_ignored_kinds_from_its_own_range(tmp_path: Path) -> None:
    backend = put_together(tmp_path)
    assert type(backend.network_helper(K.NEUTRON)) is Network
    assert backend.network_helper(K.FLAT_POOL) is None


def test_a_backend_has_a_name_that_an_operation_can_name() -> None:
    one = {"mode": "single_svm", "share_driver": "any"}
    Config.model_validate({"backends": {"b" * 64: one}})
    for name in ("", "b" * 65):
        with pytest.raises(ValueError, match=f"has {len(name)} characters; give it 1 to 64"):
            Config.model_validate({"backends": {name: one}})


def test_host_and_group_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="names both host and group"):
        Config.model_validate(
            {
                "backends": {
                    "b1": {
                        "mode": "single_svm",
                        "share_driver": "any",
                        "host": "h",
                        "group": "g",
                    }
                }
            }
        )
