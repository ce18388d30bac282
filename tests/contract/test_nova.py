"""The compute helper's contract on real Nova (with its fake virtualization driver), and the chain.

One file, for each that needs Nova starts it: its services take longer than all the tests here.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncssh
import pytest
from openstack.connection import Connection

from tests.openstack.clearing import MARK, clear
from tests.openstack.cloud import OpenStack
from tests.support.deployment import Deployment
from tests.support.leftovers import of_tables
from tests.support.nova import SETTING, Site, StandIn, a_network
from tests.support.pace import limit
from tests.support.services import RedisServer, free_port, require_root, wait_until
from worker.db.networks.addresses import DatabaseAddressStore
from worker.errors import ErrorCode, Fatal, NotReady, RequestFailed, Retryable
from worker.helpers.compute.base import ComputeHelper
from worker.helpers.compute.nova.helper import NovaComputeHelper
from worker.helpers.network.neutron.helper import NeutronNetworkHelper, NeutronOptions
from worker.model import NetworkKind, ServerStatus, ShareNetwork, ShareServer
from worker.testing.calls import context
from worker.testing.compute_helper import ComputeHelperContract

# The first test of a checkout installs OpenStack and prepares its tables.
pytestmark = pytest.mark.usefixtures("cleared")


@pytest.fixture(scope="module")
def site(
    openstack_with_nova: OpenStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    key_file = tmp_path_factory.mktemp("key") / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key_file)
    with openstack_with_nova.connect() as admin:
        image = admin.image.create_image(
            name="service-image", data=b"x", disk_format="raw", container_format="bare"
        )
        flavors = [
            admin.compute.create_flavor(name=name, vcpus=cores, ram=64, disk=1)
            for name, cores in (("service", 1), ("impossible", 99999))
        ]
        network, subnet = a_network(admin, "tenant", "127.77.0.0/24")
        yield Site(openstack_with_nova, admin, key_file, network, subnet)
        admin.network.delete_network(network)
        for flavor in flavors:
            admin.compute.delete_flavor(flavor)
        admin.image.delete_image(image.id)


@pytest.fixture(scope="module")
def admin(site: Site) -> Connection:
    return site.admin


@pytest.fixture
def tenants(site: Site) -> ShareNetwork:
    return ShareNetwork(
        str(uuid.uuid4()),
        "project",
        NetworkKind.NEUTRON,
        neutron_net_id=site.neutron_net_id,
        neutron_subnet_id=site.neutron_subnet_id,
    )


@pytest.fixture
def network_helper(site: Site) -> NeutronNetworkHelper:
    unused = DatabaseAddressStore("sqlite://", rest=0)
    return NeutronNetworkHelper(SETTING, NeutronOptions(**site.cloud.auth()), unused)


@pytest.fixture
def prepared(
    network_helper: NeutronNetworkHelper, tenants: ShareNetwork, site: Site
) -> Iterator[Callable[[int], ShareServer]]:
    """Servers with their ports, as the chain's first step leaves them; no port outlives them."""
    made: list[ShareServer] = []

    def new(_number: int) -> ShareServer:
        server = ShareServer(str(uuid.uuid4()), "project", "vms", tenants.id, ServerStatus.BUILDING)
        made.append(server)
        info = network_helper.allocate_network(context(), server, tenants, 1)
        return dataclasses.replace(server, network_info=info)

    yield new
    for server in made:
        ComputeHelperContract.delete(site.helper(), server)
        network_helper.deallocate_network(context(), server)
    assert list(site.admin.network.ports(network_id=site.neutron_net_id)) == []


@pytest.fixture
def helper(site: Site) -> NovaComputeHelper:
    return site.helper()


def test_what_a_failed_test_leaves_is_cleared(
    site: Site,
    helper: NovaComputeHelper,
    network_helper: NeutronNetworkHelper,
    tenants: ShareNetwork,
) -> None:
    """A machine with its port, a port alone, a second network, a server group and a key pair."""
    admin = site.admin
    admin.compute.create_keypair(name="people", type="ssh", public_key=_public(site.key_file))
    admin.compute.create_server_group(name="apart", policy="anti-affinity")
    a_network(admin, f"{MARK}management", "127.78.0.0/24")
    for machine in (True, False):
        server = ShareServer(str(uuid.uuid4()), "project", "vms", tenants.id, ServerStatus.BUILDING)
        info = network_helper.allocate_network(context(), server, tenants, 1)
        if machine:
            get(helper, dataclasses.replace(server, network_info=info), tenants)
    assert len(site.machines()) == 1
    assert len(list(admin.network.ports())) == 2
    clear(admin)
    assert site.machines() == []
    assert list(admin.network.ports()) == []
    assert list(admin.network.networks(name=f"{MARK}management")) == []
    assert list(admin.compute.keypairs()) == []
    assert list(admin.compute.server_groups()) == []


class TestNova(ComputeHelperContract):
    @pytest.fixture
    def external(self, site: Site) -> Site:
        return site

    @pytest.fixture
    def share_network(self, tenants: ShareNetwork) -> ShareNetwork:
        return tenants

    @pytest.fixture
    def new_server(self, prepared: Callable[[int], ShareServer]) -> Callable[[int], ShareServer]:
        return prepared

    @pytest.fixture
    def failing(
        self, site: Site, new_server: Callable[[int], ShareServer]
    ) -> tuple[ComputeHelper, ShareServer]:
        return site.helper(flavor="impossible"), new_server(0)

    def test_a_reachable_server_takes_commands(self) -> None:  # type: ignore[override]
        """The fake driver boots nothing: see the stand-in's test below."""


def get(helper: ComputeHelper, server: ShareServer, network: ShareNetwork) -> Any:
    return ComputeHelperContract.get(helper, server, network)


def once(helper: ComputeHelper, server: ShareServer, network: ShareNetwork) -> Any:
    assert server.network_info is not None
    return helper.get_share_server(context(), server, network, server.network_info, ())


def test_the_machine_is_what_the_options_say(
    site: Site, prepared: Callable[[int], ShareServer], tenants: ShareNetwork
) -> None:
    """Its port stays when it goes, and is the network helper's again."""
    compute = site.admin.compute
    compute.create_keypair(name="people", type="ssh", public_key=_public(site.key_file))
    group = compute.create_server_group(name="apart", policy="anti-affinity")
    helper = site.helper(key_name="people", server_group="apart", availability_zone="nova")
    helper.check()
    server = prepared(0)
    details = get(helper, server, tenants)
    machine = compute.get_server(details.server_id)
    assert machine.name == f"sw-{server.id}"
    assert machine.metadata == {"share_server": server.id, "backend": "vms"}
    assert (machine.key_name, machine.availability_zone) == ("people", "nova")
    assert machine.has_config_drive
    assert machine.id in compute.get_server_group(group.id).member_ids
    written = json.loads(base64.b64decode(machine.user_data).decode().removeprefix("#cloud-config"))
    assert written["ssh_keys"]["ed25519_public"] == details.attributes["ssh_host_key"]
    assert server.network_info is not None
    (port_id,) = server.network_info.ports
    assert site.admin.network.get_port(port_id).device_id == machine.id
    ComputeHelperContract.delete(helper, server)
    assert site.admin.network.get_port(port_id).device_id == ""


def _public(key_file: Path) -> str:
    return asyncssh.read_private_key(key_file).export_public_key().decode()


def test_a_machine_that_stands_in_the_way_of_another(
    site: Site, helper: NovaComputeHelper, prepared: Callable[[int], ShareServer], tenants: Any
) -> None:
    """Two attempts made one each: the one that has the port stays."""
    server = prepared(0)
    details = get(helper, server, tenants)
    (first,) = site.machines()
    extra = site.admin.compute.create_server(
        name=first.name,
        metadata=first.metadata,
        flavor_id=site.admin.compute.find_flavor("service", ignore_missing=False).id,
        image_id=first.image.id,
        networks="none",
    )
    with pytest.raises(NotReady, match="asked for twice"):
        once(helper, server, tenants)
    assert get(helper, server, tenants) == details
    assert [machine.id for machine in site.machines()] == [first.id]
    assert extra.id != first.id
    assert server.network_info is not None
    site.admin.network.update_port(server.network_info.ports[0], device_id="")
    with pytest.raises(Fatal, match="runs without the ports"):
        once(helper, dataclasses.replace(server, status=ServerStatus.ACTIVE), tenants)
    with pytest.raises(Retryable, match="runs without the ports"):
        once(helper, server, tenants)


def test_an_audit_sees_only_what_is_the_backends(
    site: Site, helper: NovaComputeHelper, prepared: Callable[[int], ShareServer], tenants: Any
) -> None:
    server = prepared(0)
    get(helper, server, tenants)
    (ours,) = site.machines()
    asked = {
        "flavor_id": site.admin.compute.find_flavor("service", ignore_missing=False).id,
        "image_id": ours.image.id,
        "networks": "none",
    }
    name = f"sw-{uuid.uuid4()}"
    others = [
        site.admin.compute.create_server(name=name, metadata=metadata, **asked)
        for metadata in (
            {},
            {"share_server": name, "backend": SETTING.name},
            {"share_server": name.removeprefix("sw-"), "backend": "another"},
        )
    ]
    assert [one.id for one in helper.owned(context())] == [ours.id]
    for machine in others:
        site.admin.compute.delete_server(machine)


def test_a_port_that_somebody_else_is_on(
    helper: NovaComputeHelper,
    prepared: Callable[[int], ShareServer],
    tenants: ShareNetwork,
    site: Site,
) -> None:
    """Nova itself refuses a second machine on a port."""
    server, other = prepared(0), prepared(1)
    get(helper, other, tenants)
    stolen = dataclasses.replace(server, network_info=other.network_info)
    with pytest.raises(Fatal, match="in use"):
        once(helper, stolen, tenants)
    assert len(site.machines()) == 1


def test_no_host_has_room(
    site: Site, prepared: Callable[[int], ShareServer], tenants: ShareNetwork
) -> None:
    with pytest.raises(Fatal, match="No valid host was found") as failure:
        get(site.helper(flavor="impossible"), prepared(0), tenants)
    assert failure.value.code is ErrorCode.COMPUTE_EXHAUSTED


def test_the_quota_is_used_up(
    site: Site, helper: NovaComputeHelper, prepared: Callable[[int], ShareServer], tenants: Any
) -> None:
    project = site.admin.current_project_id
    assert project is not None
    site.admin.compute.update_quota_set(project, instances=0)
    try:
        with pytest.raises(Fatal, match="Raise the quota") as failure:
            get(helper, prepared(0), tenants)
    finally:
        site.admin.compute.revert_quota_set(project)
    assert failure.value.code is ErrorCode.COMPUTE_EXHAUSTED


def test_a_machine_in_error_is_made_again_unless_it_served_already(
    site: Site, helper: NovaComputeHelper, prepared: Callable[[int], ShareServer], tenants: Any
) -> None:
    server = prepared(0)
    first = get(helper, server, tenants)
    site.admin.compute.reset_server_state(first.server_id, "error")
    served = dataclasses.replace(server, status=ServerStatus.ACTIVE)
    with pytest.raises(Fatal, match="is in state ERROR") as refused:
        once(helper, served, tenants)
    assert refused.value.share_server_id == first.server_id
    with pytest.raises(Retryable, match="is in state ERROR") as failure:
        once(helper, server, tenants)
    assert failure.value.share_server_id == first.server_id
    assert get(helper, server, tenants).server_id != first.server_id


def test_a_server_that_served_is_started_again_but_not_made_anew(
    site: Site, helper: NovaComputeHelper, prepared: Callable[[int], ShareServer], tenants: Any
) -> None:
    server = prepared(0)
    details = get(helper, server, tenants)
    served = dataclasses.replace(server, status=ServerStatus.ACTIVE, server_id=details.server_id)
    site.admin.compute.stop_server(details.server_id)
    site.admin.compute.wait_for_server(
        site.admin.compute.get_server(details.server_id), "SHUTOFF", interval=0.1
    )
    assert get(helper, served, tenants) == details
    ComputeHelperContract.delete(helper, served)
    with pytest.raises(Fatal, match="no machine of it any more"):
        once(helper, served, tenants)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "nothing"}, "no active image nothing"),
        ({"flavor": "nothing"}, "no flavor nothing"),
        ({"key_name": "nothing"}, "no key pair nothing"),
        ({"availability_zone": "nowhere"}, "no available zone nowhere"),
        ({"server_group": "nothing"}, "no server group nothing"),
        ({"management_network": "nothing"}, "no network nothing"),
        ({"ssh_private_key_file": "/nonexistent"}, "/nonexistent"),
    ],
)
def test_what_the_options_name_is_looked_for_at_start(
    site: Site, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Fatal, match=words):
        site.helper(**options).check()


def test_it_serves_once_it_answers_over_ssh_as_itself(
    site: Site,
    prepared: Callable[[int], ShareServer],
    tenants: ShareNetwork,
    tmp_path: Path,
) -> None:
    """On a second port, which Nova makes on the management network, and takes away again."""
    require_root()
    management = f"{MARK}management"
    network, _ = a_network(site.admin, management, "127.78.0.0/24")
    helper = site.helper(
        wait_for_ssh=True,
        management_network=management,
        ssh_port=free_port(),
        server_directory=str(tmp_path / "server"),
    )
    server = prepared(0)
    with pytest.raises(NotReady):
        once(helper, server, tenants)
    (machine,) = site.machines()
    wait_until(lambda: site.machines()[0].status == "ACTIVE", "the machine is active")
    with pytest.raises(NotReady, match="does not serve yet"):
        once(helper, server, tenants)
    (port,) = site.admin.network.ports(network_id=network)
    address = port.fixed_ips[0]["ip_address"]
    user_data = base64.b64decode(site.admin.compute.get_server(machine.id).user_data).decode()
    stand_in = StandIn(tmp_path, user_data, address, helper.options.ssh_port)
    try:
        with pytest.raises(NotReady, match="still installs its software"):
            once(helper, server, tenants)
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "ready").touch()
        details = get(helper, server, tenants)
        assert details.attributes["ssh_address"] == address
        assert server.network_info is not None
        assert details.addresses == server.network_info.addresses
        shell = helper.shell(dataclasses.replace(server, details=details))
        assert shell.run(["sh", "-c", "exit 3"], check=False).exit_code == 3
    finally:
        stand_in.process.close()
    ComputeHelperContract.delete(helper, server)
    assert list(site.admin.network.ports(network_id=network)) == []


KILLS: Final = (
    *("nova.after_port", "nova.after_create", "nova.after_create", "nova.after_delete"),
    *("get_share_server.after_effect", "get_share_server.before_commit"),
    *("delete_share_server.after_effect", "deallocate_network.after_effect"),
)
NETWORKS: Final = 4


@dataclass
class Chain:
    """A deployment with the fake share driver on machines of Nova."""

    deployment: Deployment
    site: Site
    networks: list[str]
    tokens: Path

    def create(self, count: int, share_type: str = "vms") -> list[str]:
        """Ask for shares, in turn on every network."""
        return [
            self.deployment.client.submit(
                "create_share",
                self.deployment.payload(
                    size=1, share_network_id=self.networks[number % NETWORKS], share_type=share_type
                ),
            )
            for number in range(count)
        ]

    def result(self, operation: str) -> dict[str, Any]:
        return self.deployment.client.result(operation, timeout=limit())

    def delete(self, shares: list[str]) -> None:
        """Delete them; then nothing of theirs is left anywhere."""
        client, payload = self.deployment.client, self.deployment.payload
        asked = [client.submit("delete_share", payload(share_id=share)) for share in shares]
        assert [self.result(one)["status"] for one in asked] == ["deleted"] * len(shares)
        self.deployment.settle()
        assert self.site.state() == []
        assert list(self.site.admin.network.ports()) == []
        kept = ("tables: share_networks", "tables: share_types")
        left = of_tables(self.deployment.engine)
        assert [line for line in left if not line.startswith(kept)] == []

    def shares_on_four_machines(self, count: int) -> list[str]:
        made = [self.result(operation) for operation in self.create(count)]
        assert [share["status"] for share in made] == ["available"] * count
        servers = {share["share_server_id"] for share in made}
        machines = self.site.machines()
        assert {machine.name for machine in machines} == {f"sw-{server}" for server in servers}
        assert len(servers) == len(machines) == NETWORKS
        for machine in machines:
            (port,) = self.site.admin.network.ports(device_id=machine.id)
            assert f"share_server={machine.metadata['share_server']}" in port.tags
        return [share["id"] for share in made]


@pytest.fixture(scope="module")
def four_networks(site: Site) -> Iterator[list[tuple[str, str]]]:
    made = [a_network(site.admin, f"net-{n}", f"127.79.{n}.0/24") for n in range(NETWORKS)]
    yield made
    for network, _ in made:
        site.admin.network.delete_network(network)


@pytest.fixture
def chain(
    site: Site,
    four_networks: list[tuple[str, str]],
    shared_redis: RedisServer,
    tmp_path: Path,
) -> Iterator[Chain]:
    """A deployment of the test's own: nobody works any more on what a failed one left."""
    (tokens := tmp_path / "tokens").mkdir()
    armed = {*KILLS, "nova.after_extra_deleted"}
    settings = site.backend("vms") + site.backend("full", flavor="impossible")
    url = f"sqlite:///{tmp_path / 'sw.db'}"
    with shared_redis.client() as client:
        client.flushall()
    deployment = Deployment(tmp_path, url, shared_redis, settings, {"retry_time": 600.0})
    try:
        deployment.role("scheduler")
        deployment.role("reconciler")
        deployment.worker(
            "worker",
            concurrency=3,
            SHAREWRIGHT_FAILPOINTS=";".join(f"{name}=kill" for name in armed),
            SHAREWRIGHT_FAILPOINT_TOKENS=str(tokens),
        )
        deployment.wait_reported(2)
        for name in ("vms", "full"):
            specs = {"share_backend_name": name}
            deployment.ask("create_share_type", admin=True, name=name, extra_specs=specs)
        share_networks = [
            deployment.ask(
                "create_share_network", neutron_net_id=network, neutron_subnet_id=subnet
            )["id"]
            for network, subnet in four_networks
        ]
        yield Chain(deployment, site, share_networks, tokens)
    finally:
        deployment.close()


def test_twenty_shares_on_four_networks(chain: Chain) -> None:
    chain.delete(chain.shares_on_four_machines(20))


def test_workers_killed_in_the_middle_leave_nothing_either(chain: Chain) -> None:
    for number, failpoint in enumerate(KILLS):
        (chain.tokens / f"{failpoint}@{number}").touch()
    chain.delete(chain.shares_on_four_machines(8))
    assert list(chain.tokens.iterdir()) == [], "some kills never happened"


def test_a_worker_killed_when_it_had_removed_one_machine_too_many(chain: Chain) -> None:
    """An attempt that was taken for dead asks late: there are two machines for a while."""
    kill = chain.tokens / "nova.after_extra_deleted@1"
    kill.touch()
    (operation,) = chain.create(1)
    wait_until(lambda: bool(chain.site.machines()), "Nova knows the machine")
    (first,) = chain.site.machines()
    late = chain.site.admin.compute.create_server(
        name=first.name,
        metadata=first.metadata,
        flavor_id=chain.site.admin.compute.find_flavor("service", ignore_missing=False).id,
        image_id=first.image.id,
        networks="none",
    )
    share = chain.result(operation)
    assert not kill.exists(), "the kill never happened"
    wait_until(lambda: len(chain.site.machines()) == 1, "the machine too many is gone")
    (left,) = chain.site.machines()
    assert left.id == first.id != late.id
    chain.delete([share["id"]])


def test_a_machine_that_finds_no_host_is_undone(chain: Chain) -> None:
    (chain.tokens / "nova.after_delete@undo").touch()
    with pytest.raises(RequestFailed, match="No valid host was found") as failure:
        chain.result(chain.create(1, "full")[0])
    assert failure.value.code == ErrorCode.COMPUTE_EXHAUSTED
    (share,) = chain.result(
        chain.deployment.client.submit("list_shares", chain.deployment.payload())
    )["shares"]
    assert share["status"] == "error"
    chain.delete([share["id"]])
    assert list(chain.tokens.iterdir()) == [], "the kill never happened"
