"""Security services on the whole way: to the right servers, and their passwords nowhere else."""

from __future__ import annotations

import codecs
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from celery import Celery
from click.testing import CliRunner
from sqlalchemy import select
from sqlalchemy.engine import make_url

from scheduler.cli import cli
from scheduler.exits import exit_code_of, failure_of
from tests.integration.test_flower import fetch, start_flower
from tests.support.deployment import FAKE_BACKEND
from tests.support.fakes import Fakes
from tests.support.pace import limit
from tests.support.plain import run_plain
from tests.support.secret import AD, CORE, PASSWORD, leaks, sealed
from tests.support.services import ROOT, Process, RedisServer, require, wait_until
from worker.db.core.engine import reading
from worker.db.tables.main import dead_letters, security_services, share_servers, shares
from worker.errors import RequestFailed
from worker.model import SecurityService, SecurityServiceType
from worker.systems.fake_world import digest_of

CARELESS: Final = "Xy4pTsentInTheClear8Lq"
"""Of passwords that somebody sent in clear."""
LDAP_PASSWORD: Final = f"{CORE}-too"
ON_AD: Final = (
    SecurityServiceType.ACTIVE_DIRECTORY,
    *(AD["dns_ip"], None, AD["domain"], None, AD["user"], PASSWORD),
)
ON_LDAP: Final = (
    SecurityServiceType.LDAP,
    *(None, "ldap.example", None, None, "reader", LDAP_PASSWORD),
)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


@pytest.fixture
def fakes(
    tmp_path: Path, database_url: str, redis_server: RedisServer, secrets: Path
) -> Iterator[Fakes]:
    """Logs all that it can, and keeps share servers that nobody uses."""
    settings = f'[secrets]\ndirectory = "{secrets}"\n[log]\nlevel = "DEBUG"\n{FAKE_BACKEND}'
    engine = {"unused_share_server_cleanup_interval": 3600.0}
    made = Fakes(tmp_path, database_url, redis_server, settings, engine=engine)
    try:
        yield made
    finally:
        made.close()


class Command:
    """The command, and all that it has printed."""

    def __init__(self, deployment: Fakes) -> None:
        self.env = {**deployment.env, "HOME": str(deployment.directory)}
        self.printed = b""

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> Any:
        """Return the document, or with another exit code what is said of the error."""
        done = CliRunner().invoke(
            cli, ("--json", "--project", "p1", *arguments), input=stdin, env=self.env
        )
        error = done.exception if isinstance(done.exception, Exception) else None
        failure = failure_of(error) if error else None
        said = failure.sentence() if failure else ""
        self.printed += (done.output + said).encode()
        assert (exit_code_of(error) if error else 0) == code, done.output + repr(error)
        return said if error else json.loads(done.stdout)


def monitor(deployment: Fakes) -> Process:
    """Write down everything that is said to Redis: messages, events, results."""
    watching = Process(
        (require("redis-cli"), "-p", str(deployment.redis.port), "monitor"),
        log=deployment.directory / "monitor.log",
    )
    deployment.processes["monitor"] = watching
    return watching.start("OK")


def dump(deployment: Fakes) -> bytes:
    """The whole database as a backup has it; of SQLite the files as well."""
    url = make_url(deployment.database_url)
    if url.get_backend_name() == "postgresql":
        return subprocess.run(
            (
                *(require("pg_dump"), "-h", str(url.host), "-p", str(url.port)),
                *("-U", str(url.username), str(url.database)),
            ),
            check=True,
            capture_output=True,
            timeout=limit(),
        ).stdout
    path = Path(str(url.database))
    connection = sqlite3.connect(path)
    lines = "\n".join(connection.iterdump()).encode(errors="surrogateescape")
    connection.close()
    return lines + b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def keys_of_redis(deployment: Fakes) -> bytes:
    """Every key with its content, of both databases."""
    found = b""
    for number in (0, 1):
        with deployment.redis.client(number) as client:
            for key in client.keys("*"):
                found += key + (client.dump(key) or b"") + _text(client, key)
    return found


def _text(client: Any, key: bytes) -> bytes:
    # A dump may be compressed; what holds text is read as well.
    match client.type(key):
        case b"string":
            return bytes(client.get(key) or b"")
        case b"list":
            return b"".join(client.lrange(key, 0, -1))
        case b"hash":
            return b"".join(part for pair in client.hgetall(key).items() for part in pair)
        case _:
            return b""


def world_of(deployment: Fakes) -> bytes:
    path = deployment.world.path
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def logs_of(deployment: Fakes) -> bytes:
    return b"".join(
        process.log.read_bytes()
        for name, process in deployment.processes.items()
        if name != "monitor"
    )


def shown_by_flower(port: int | None) -> bytes:
    if port is None:
        return b"(it is not asked)"
    shown = fetch(port, "/api/tasks?limit=10000")
    assert shown
    return json.dumps([shown, fetch(port, "/api/workers")]).encode()


def server_of(deployment: Fakes, share: str) -> str:
    with reading(deployment.engine) as connection:
        return str(
            connection.execute(
                select(shares.c.share_server_id).where(shares.c.id == share)
            ).scalar_one()
        )


def create(deployment: Fakes, network: str) -> tuple[str, str]:
    """Make a share; its id and its server's."""
    share = str(deployment.client.result(deployment.create(network), timeout=limit())["id"])
    return share, server_of(deployment, share)


def handed(deployment: Fakes, server: str) -> dict[str, str]:
    """What the fakes noted: the compute helper under the empty id, the driver by shares."""
    return {
        row["share"]: row["digest"]
        for row in deployment.world.security()
        if row["server"] == server
    }


def expected(server: str, **services: tuple[Any, ...]) -> str:
    return digest_of([SecurityService(one, *rest) for one, rest in services.items()], server)


def add(deployment: Fakes, service: str, network: str) -> None:
    deployment.ask("add_security_service", security_service_id=service, share_network_id=network)


def test_the_right_servers_get_them_and_nobody_else(
    fakes: Fakes, secrets: Path, tmp_path: Path
) -> None:
    command = Command(fakes)
    first_key = command("secrets", "generate")["key_id"]
    assert "rotate" in command("secrets", "generate", code=3)
    watching = monitor(fakes)
    fakes.start(workers=1)
    # What it shows does not depend on the database.
    flower = start_flower(fakes)[1] if "sqlite" in fakes.database_url else None
    ad, ldap = _make_services(fakes, command, tmp_path)
    network = fakes.network()
    command("security-service", "add", ad, network)

    # A server for this set, shared.
    one, with_ad = create(fakes, network)
    two, same = create(fakes, network)
    assert same == with_ad
    wanted = expected(with_ad, **{ad: ON_AD})
    assert handed(fakes, with_ad) == {"": wanted, one: wanted, two: wanted}
    refused = command("security-service", "add", ldap, network, code=3)
    assert "in use" in refused
    assert one in refused

    # Another set: another server, once nobody is on the first.
    for share in (one, two):
        fakes.ask("delete_share", share_id=share)
    add(fakes, ldap, network)
    three, with_both = create(fakes, network)
    assert with_both != with_ad
    assert {server["id"] for server in fakes.world.servers()} == {with_ad, with_both}
    wanted = expected(with_both, **{ad: ON_AD, ldap: ON_LDAP})
    assert handed(fakes, with_both) == {"": wanted, three: wanted}
    fakes.ask("extend_share", share_id=three, new_size=2)
    snapshot = fakes.ask("create_snapshot", share_id=three)["id"]
    fakes.ask("delete_snapshot", snapshot_id=snapshot)

    # Another key: the old one still opens.
    new_key = command("secrets", "rotate")["key_id"]
    another = fakes.network()
    add(fakes, ad, another)
    four, third = create(fakes, another)
    assert handed(fakes, third)[four] == expected(third, **{ad: ON_AD})
    assert "2 passwords are sealed" in command("secrets", "retire", first_key, code=3)
    assert command("secrets", "reseal", "--batch", "1") == {"resealed": 2, "not_opened": []}
    assert command("secrets", "retire", first_key)["status"] == "retired"
    assert command("secrets", "list")["keys"] == [
        {"id": new_key, "is_current": True, "has_private": True, "passwords": 2}
    ]
    # Sealing anew changed nothing for the servers, and the new key opens.
    five, still = create(fakes, another)
    assert (still, handed(fakes, third)[five]) == (third, handed(fakes, third)[four])
    for verb in ("list", "show"):
        command("security-service", verb, *([ad] if verb == "show" else []))
    command("share-network", "show", network)
    command("share-server", "list")
    command("operation", "list")

    _found_nowhere(fakes, command, watching, flower, new_key)
    _careless(fakes, command, flower)


def _make_services(fakes: Fakes, command: Command, directory: Path) -> tuple[str, str]:
    """One by the command, one by a producer that has nothing of ours."""
    options = [
        part for name, value in AD.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    made = command(
        "security-service", "create", *options, "--password-file", "-", stdin=PASSWORD + "\n"
    )
    plain = run_plain(
        ROOT / "docs" / "examples" / "seal.py",
        *(fakes.redis.url(), fakes.redis.url(1), "p1", "ldap.example", "reader"),
        directory=directory,
        stdin=LDAP_PASSWORD + "\n",
    )
    assert plain.returncode == 0, plain.stderr
    return str(made["id"]), plain.stdout.strip()


def _found_nowhere(
    fakes: Fakes, command: Command, watching: Process, flower: int | None, key: str
) -> None:
    fakes.settle()
    said = watching.log.read_bytes()
    assert leaks("events", said, "task-received"), "events were heard"
    assert b"sharewright.request.create_security_service" in said, "messages were heard"
    places = {
        "said to Redis": said,
        "said to Redis, unescaped": codecs.escape_decode(said)[0],
        "kept by Redis": keys_of_redis(fakes),
        "dump": dump(fakes),
        "logs": logs_of(fakes),
        "fake world": world_of(fakes),
        "printed": command.printed,
        "Flower": shown_by_flower(flower),
    }
    assert all(places.values())
    assert key.encode() in places["dump"]
    assert b"joiner" in places["dump"]
    assert [leak for where, found in places.items() for leak in leaks(where, found)] == []
    # They would have been found: this is what a test that can fail looks for.
    assert leaks("here", PASSWORD.encode())
    assert leaks("here", json.dumps([{"password": PASSWORD}]).encode())
    for lead in ("", "x", "xy"):
        text = json.dumps([lead, PASSWORD])
        assert leaks("here", codecs.encode(text.encode(), "base64").replace(b"\n", b""))


def _careless(fakes: Fakes, command: Command, flower: int | None) -> None:
    """Who sends a password in clear is refused, and nothing of it stays."""
    payload = fakes.payload(**AD, password=f"{CARELESS}!")
    app = Celery(broker=fakes.redis.url(), backend=fakes.redis.url(1))
    with pytest.raises(Exception, match="sealed only") as caught:
        app.send_task(
            "sharewright.request.create_security_service", [payload], queue="requests"
        ).get(timeout=limit())
    assert CARELESS not in repr(caught.value)
    app.send_task("sharewright.request.create_a_security_service", [payload], queue="requests")
    app.send_task("sharewright.request.create_security_service", [], payload, queue="requests")
    app.close()

    def kept() -> list[Any]:
        with reading(fakes.engine) as connection:
            return list(connection.execute(select(dead_letters)))

    wait_until(lambda: len(kept()) == 2, "two messages are set aside")
    assert all("password" in message.body for message in kept()), "it is told why it is not there"
    with fakes.redis.client() as client:
        wait_until(lambda: not client.hlen("unacked"), "all is acknowledged")
    listed = command("dead-letter", "list")["dead_letters"]
    for message in listed:
        command("dead-letter", "show", str(message["id"]))
    places = {
        "kept by Redis": keys_of_redis(fakes),
        "dump": dump(fakes),
        "logs": logs_of(fakes),
        "printed": command.printed,
        "Flower": shown_by_flower(flower),
    }
    found = [leak for where, text in places.items() for leak in leaks(where, text, CARELESS)]
    assert found == []


def test_a_key_that_is_lost_fails_the_create_and_is_named(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer, secrets: Path
) -> None:
    settings = f'[secrets]\ndirectory = "{secrets}"\n{FAKE_BACKEND}'
    fakes = Fakes(tmp_path, sqlite_url, redis_server, settings)
    try:
        fakes.start()
        with pytest.raises(RequestFailed, match="secrets generate"):
            fakes.client.seal(PASSWORD, project_id="p1")
        key = Command(fakes)("secrets", "generate")["key_id"]
        made = fakes.ask("create_security_service", **AD, password=sealed(secrets, "p1"))
        network = fakes.network()
        add(fakes, made["id"], network)
        private = secrets / f"{key}.key"
        content = private.read_bytes()
        private.unlink()
        failed = fakes.failure(fakes.create(network))
        assert key in failed.message
        assert (failed.code, failed.object.split()[0]) == ("configuration", "share_server")
        fakes.settle()
        fakes.assert_nothing_external()
        # A worker that cannot open it does not begin.
        late = fakes.worker("late")
        assert late.wait() == 8
        assert key in late.output()
        private.write_bytes(content)
        private.chmod(0o600)
        fakes.client.result(fakes.create(network), timeout=limit())
        with reading(fakes.engine) as connection:
            servers = connection.execute(select(share_servers.c.status)).scalars().all()
            passwords = connection.execute(select(security_services.c.password_key_id)).scalars()
        assert sorted(servers) == ["active", "error"]  # the one that failed shows why
        assert list(passwords) == [key]
    finally:
        fakes.close()
