"""How OpenStack's errors are read: real ones of Keystone and Neutron, and a server that is busy."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection
from pydantic import ValidationError

from tests.openstack.cloud import OpenStack as Cloud
from tests.openstack.service import PASSWORD
from worker.backends.assembly import assemble, check
from worker.config import Config
from worker.db.networks.addresses import DatabaseAddressStore
from worker.errors import ConfigurationError, ErrorCode, Fatal, Retryable, StepError
from worker.helpers.network.neutron.helper import NeutronNetworkHelper, NeutronOptions
from worker.model import DriverMode, NetworkKind, ShareNetwork
from worker.plugin import BackendContext
from worker.systems.openstack.client import Missing, OpenStack, OpenStackOptions, Taken
from worker.testing.calls import context
from worker.testing.network_helper import a_server

# The first test of a checkout installs OpenStack and prepares its tables.


@pytest.fixture
def admin(openstack: Cloud) -> Iterator[Connection]:
    with openstack.connect() as connection:
        yield connection


def client(cloud: Cloud, who: str = "admin", **options: Any) -> OpenStack:
    given = OpenStackOptions(**(cloud.auth(who) | options))
    return OpenStack(given, ErrorCode.NETWORK_FAILED)


def refused(user: OpenStack, call: Callable[[Connection], Any]) -> StepError:
    """The error of a call; no error has a secret in it."""
    with pytest.raises(StepError) as caught:
        user.change("do it", call, about="share_server s1", guard=lambda: None)
    assert caught.value.object == "share_server s1"
    assert caught.value.message.startswith("OpenStack could not do it: ")
    assert PASSWORD not in repr(caught.value.to_json())
    return caught.value


def test_a_token_that_was_revoked_is_replaced(openstack: Cloud, admin: Connection) -> None:
    user = client(openstack, timeout=29.0)
    token = user.ask("log in", lambda c: c.session.get_token(), about="backend b")
    admin.identity.delete("/auth/tokens", headers={"X-Subject-Token": token})
    networks = user.ask("list", lambda c: list(c.network.networks()), about="backend b")
    assert isinstance(networks, list)
    assert user.ask("log in", lambda c: c.session.get_token(), about="backend b") != token


def test_a_wrong_password(openstack: Cloud) -> None:
    error = refused(
        client(openstack, password="not-it"), lambda c: c.network.get_network("anything")
    )
    assert isinstance(error, Fatal)
    assert error.code is ErrorCode.CONFIGURATION
    assert "not-it" not in error.message


def test_what_is_not_there_or_taken_or_not_allowed(openstack: Cloud, admin: Connection) -> None:
    network = admin.network.create_network(name="taken")
    admin.network.create_subnet(network_id=network.id, cidr="10.90.0.0/29", ip_version=4)
    port = admin.network.create_port(network_id=network.id)
    try:
        user = client(openstack)
        missing = refused(user, lambda c: c.network.get_network(str(uuid.uuid4())))
        assert isinstance(missing, Missing)
        taken = refused(user, lambda c: c.network.delete_network(network.id))
        assert isinstance(taken, Taken)
        assert taken.reason == "NetworkInUse"
        tenant = client(openstack, "tenant")
        forbidden = refused(
            tenant, lambda c: c.network.create_network(provider_network_type="vlan")
        )
        assert isinstance(forbidden, Fatal)
        assert "Give the backend's user a role" in forbidden.message
    finally:
        admin.network.delete_port(port)
        admin.network.delete_network(network)


def test_a_used_up_quota(openstack: Cloud, admin: Connection) -> None:
    project = admin.identity.find_project("tenant", ignore_missing=False)
    admin.network.update_quota(project.id, networks=0)
    try:
        error = refused(client(openstack, "tenant"), lambda c: c.network.create_network(name="n"))
    finally:
        admin.network.delete_quota(project.id)
    assert isinstance(error, Fatal)
    assert error.code is ErrorCode.NETWORK_FAILED
    assert "Raise the quota" in error.message


def test_neutron_is_away_and_comes_back(openstack: Cloud) -> None:
    user = client(openstack)
    call: Callable[[Connection], Any] = lambda c: list(c.network.networks())  # noqa: E731 - typed
    user.ask("list", call, about="backend b")
    openstack.stop("neutron")
    try:
        error = refused(user, call)
        fresh = refused(client(openstack, timeout=28.0), call)
    finally:
        openstack.start_again("neutron")
    assert isinstance(error, Retryable)
    assert error.code is fresh.code is ErrorCode.BACKEND_UNAVAILABLE
    assert isinstance(fresh, Retryable)
    assert isinstance(user.ask("list", call, about="backend b"), list)


class Busy(ThreadingHTTPServer):
    """A network service that answers 503 so often, then that there are no networks."""

    daemon_threads = True

    def __init__(self, refusals: int, seconds: float = 0.0) -> None:
        self.left, self.seconds = refusals, seconds
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: Busy

    def do_GET(self) -> None:
        time.sleep(self.server.seconds)
        listing = "/networks" in self.path
        status = 503 if listing and self.server.left > 0 else 200
        self.server.left -= listing
        body = json.dumps({"networks": []} if listing else {"versions": []}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    "case",
    [
        (2, 0.0, None),
        (1000, 0.0, ErrorCode.BACKEND_UNAVAILABLE),
        (0, 3.0, ErrorCode.TIMEOUT),
    ],
)
def test_a_busy_service_is_waited_for_a_moment(
    openstack: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[int, float, ErrorCode | None],
) -> None:
    """Also: the login of clouds.yaml."""
    refusals, seconds, code = case
    busy = Busy(refusals, seconds)
    thread = threading.Thread(target=busy.serve_forever)
    thread.start()
    login = openstack.auth() | {"user_domain_id": "default", "project_domain_id": "default"}
    name = f"busy-{busy.server_port}"
    clouds = {
        "clouds": {
            name: {
                "auth": login,
                "network_endpoint_override": f"http://127.0.0.1:{busy.server_port}/v2.0",
            }
        }
    }
    (tmp_path / "clouds.yaml").write_text(json.dumps(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    user = OpenStack(OpenStackOptions(cloud=name, timeout=1.0), ErrorCode.NETWORK_FAILED)
    try:
        if code is None:
            assert user.ask("list", lambda c: list(c.network.networks()), about="b") == []
            return
        error = refused(user, lambda c: list(c.network.networks()))
        assert isinstance(error, Retryable)
        assert error.code is code
    finally:
        busy.shutdown()
        busy.server_close()
        thread.join()


def test_one_way_to_log_in() -> None:
    with pytest.raises(ValidationError, match="give auth_url, username, password, project_name"):
        OpenStackOptions()
    with pytest.raises(ValidationError, match="leave out either"):
        OpenStackOptions(cloud="c", username="u")
    assert "s3" not in repr(
        OpenStackOptions(auth_url="a", username="u", password="s3", project_name="p")
    )


def configuration(cloud: Cloud, mode: DriverMode, **options: Any) -> Config:
    backend = {
        "mode": mode,
        "share_driver": "fake",
        "compute_helper": "fake",
        "network_helpers": ["neutron"],
        "network": {"neutron": cloud.auth() | options},
    }
    return Config.model_validate({"backends": {"b": backend}})


@pytest.fixture
def named_networks(admin: Connection) -> Iterator[None]:
    """Two networks of one name; and one with two subnets."""
    made = [admin.network.create_network(name=name) for name in ("twice", "twice", "once")]
    for cidr in ("10.1.0.0/24", "10.2.0.0/24"):
        admin.network.create_subnet(network_id=made[2].id, cidr=cidr, ip_version=4)
    yield
    for network in made:
        admin.network.delete_network(network)


@pytest.mark.usefixtures("named_networks")
@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("flat_multi_svm", {"neutron_net": "nowhere"}, "has no network nowhere"),
        ("flat_multi_svm", {"neutron_net": "twice"}, "2 things that network twice may be"),
        ("flat_multi_svm", {"neutron_net": "once"}, "2 things that subnet of network once may be"),
        ("flat_multi_svm", {"neutron_net": "once", "neutron_subnet": "z"}, "has no subnet z"),
        ("flat_multi_svm", {}, "name it as the network helper's neutron_net"),
        ("flat_multi_svm", {"neutron_net": "once", "router": False}, "router cannot be used"),
        ("managed_multi_svm", {"neutron_net": "once"}, "neutron_net cannot be used"),
        ("managed_multi_svm", {"external_network": "nowhere"}, "has no network nowhere"),
        ("managed_multi_svm", {"managed_cidrs": ["10.0.0.1/8"]}, "has host bits set"),
        ("managed_multi_svm", {"password": "not-it"}, "Keystone refuses the login"),
    ],
)
def test_what_cannot_work_is_refused_at_start(
    openstack: Cloud, sqlite_url: str, mode: str, options: dict[str, Any], words: str
) -> None:
    store = DatabaseAddressStore(sqlite_url, rest=0.0)
    with pytest.raises(ConfigurationError, match=words) as refusal:
        check(assemble(configuration(openstack, DriverMode(mode), **options), "b", store))
    assert "not-it" not in refusal.value.message


def test_a_full_subnet(openstack: Cloud, admin: Connection, sqlite_url: str) -> None:
    """All that a /29 has, and no more; what was made by then goes with the undo."""
    network = admin.network.create_network(name="small")
    subnet = admin.network.create_subnet(network_id=network.id, cidr="10.91.0.0/29", ip_version=4)
    helper = NeutronNetworkHelper(
        BackendContext("b", DriverMode.FLAT_MULTI_SVM, Path("/nonexistent")),
        NeutronOptions(**openstack.auth(), neutron_net=network.id, neutron_subnet=subnet.id),
        DatabaseAddressStore(sqlite_url, rest=0.0),
    )
    share_network = ShareNetwork(str(uuid.uuid4()), "p", NetworkKind.NEUTRON)
    first, second = a_server(share_network), a_server(share_network)
    try:
        info = helper.allocate_network(context(), first, share_network, 4)
        assert set(info.addresses) < {f"10.91.0.{last}" for last in range(2, 7)}
        with pytest.raises(Fatal) as full:
            helper.allocate_network(context(), second, share_network, 2)
        assert full.value.code is ErrorCode.ADDRESSES_EXHAUSTED
        helper.deallocate_network(context(), second)
        assert len(list(admin.network.ports(network_id=network.id))) == 4
        helper.deallocate_network(context(), first)
    finally:
        admin.network.delete_network(network)
