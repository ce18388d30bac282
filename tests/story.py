"""The whole way once, as ``make run`` tells it: from a message to files over NFS, and back.

Starts ``sharewright up`` in a directory of its own, asks for everything by message, looks at it
as tenants do, and compares machine and tables with how they were before. Where the machine
cannot serve NFS, it says what is missing and tells the same story on the fakes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from scheduler.client import Client
from scheduler.service.defaults import missing_for_nfs
from tests.support import leftovers
from tests.support.services import Process, python
from tests.support.tenants import Machine
from tests.support.views import DENIED, FULL, READ_ONLY, FakeView, NfsView, View
from worker.db.core.engine import engine_for, reading
from worker.db.tables.main import operations
from worker.systems.fake_world import World

SUBNET = "10.98.0.0/24"
POOL = "10.98.0.16/28"
WRITER, READER, STRANGER = "10.98.0.5", "10.98.0.6", "10.98.0.7"
SETTLE_SECONDS = 30


def say(text: str) -> None:
    print(text, flush=True)


def expect(condition: bool, what: str, seen: object = "") -> None:
    if not condition:
        raise AssertionError(f"not so: {what} {seen}")
    say(f"  - {what}")


@dataclass
class Service:
    """A running ``sharewright up``."""

    home: Path
    process: Process
    client: Client
    database_url: str

    @classmethod
    def up(cls, home: Path) -> Service:
        process = Process(python("scheduler.cli", "up", "--home", str(home)), log=home / "up.log")
        process.start("ready:", seconds=60)
        service = json.loads((home / "service.json").read_text())
        client = Client(service["broker_url"], service["result_backend"])
        return cls(home, process, client, service["database_url"])

    def ask(self, project: str, verb: str, **fields: Any) -> dict[str, Any]:
        payload = {"version": 1, "context": {"project_id": project}, **fields}
        began = time.monotonic()
        answer = self.client.result(self.client.submit(verb, payload), timeout=60)
        if not verb.startswith(("show", "list")):
            say(f"  {verb:22} {(time.monotonic() - began) * 1000:6.0f} ms")
        return answer

    def settle(self) -> None:
        """Wait until nothing is in flight: servers are cleaned up behind the last share."""
        deadline = time.monotonic() + SETTLE_SECONDS
        live = operations.c.state.in_(("pending", "running", "undoing"))
        while True:
            with reading(engine_for(self.database_url)) as connection:
                count = connection.execute(
                    select(func.count()).select_from(operations).where(live)
                ).scalar_one()
            if not count:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{count} operations are still in flight")
            time.sleep(0.1)

    def network(self, project: str) -> str:
        return str(
            self.ask(
                project,
                "create_share_network",
                name=f"{project}'s",
                flat_network_ip_pool=[POOL],
                flat_network_subnet=SUBNET,
            )["id"]
        )

    def view(self, project: str, share: dict[str, Any], *, real: bool) -> View:
        if not real:
            world = World(self.home / "state" / "backends" / "fake" / "world.db")
            return FakeView(world, share["share_network_id"])
        network = self.ask(
            project, "show_share_network", share_network_id=share["share_network_id"]
        )
        (attachment,) = network["attachments"]
        return NfsView(attachment["bridge"], 24)

    def close(self) -> None:
        self.client.close()
        if self.process.running:
            self.process.terminate()
        self.process.close()
        engine_for(self.database_url).dispose()


@contextmanager
def views(service: Service, *made: tuple[str, dict[str, Any]], real: bool) -> Iterator[list[View]]:
    opened = [service.view(project, share, real=real) for project, share in made]
    try:
        yield opened
    finally:
        for view in opened:
            view.close()


def tell(service: Service, *, real: bool) -> None:
    say("two tenants ask for a share each, by message")
    networks = {project: service.network(project) for project in ("tenant-a", "tenant-b")}
    share, other = (
        service.ask(
            project, "create_share", name="docs", size=1, share_network_id=networks[project]
        )
        for project in networks
    )
    say(f"  export: {share['export_locations'][0]['path']}")
    with views(service, ("tenant-a", share), ("tenant-b", other), real=real) as (mine, theirs):
        copy, snapshot = _use(service, share, mine, theirs)
    say("all is deleted")
    service.ask("tenant-a", "delete_share", share_id=copy["id"])
    service.ask("tenant-a", "delete_snapshot", snapshot_id=snapshot["id"])
    service.ask("tenant-a", "delete_share", share_id=share["id"])
    service.ask("tenant-b", "delete_share", share_id=other["id"])
    service.settle()
    for project, network in networks.items():
        service.ask(project, "delete_share_network", share_network_id=network)


def _use(
    service: Service, share: dict[str, Any], mine: View, theirs: View
) -> tuple[dict[str, Any], dict[str, Any]]:
    def ask(verb: str, **fields: Any) -> dict[str, Any]:
        return service.ask("tenant-a", verb, **fields)

    say("access")
    expect(mine.read(WRITER, share) == DENIED, "without a rule nobody gets in")
    ask("allow_access", share_id=share["id"], access_to=WRITER)
    rule = ask("allow_access", share_id=share["id"], access_to=READER, access_level="ro")
    expect(mine.write(WRITER, share, "first") == "", "a file is written from the tenant's network")
    expect(mine.read(WRITER, share) == "first", "and read back")
    expect(
        not theirs.reaches(STRANGER, share) or theirs.read(STRANGER, share) == DENIED,
        "another tenant's network does not reach it",
    )
    expect(mine.read(READER, share) == "first", "a read-only client reads")
    expect(mine.write(READER, share, "no") == READ_ONLY, "and is refused a write")
    ask("deny_access", share_id=share["id"], access_id=rule["id"])
    expect(mine.read(READER, share) == DENIED, "once denied, it is refused")

    say("snapshot")
    snapshot = ask("create_snapshot", share_id=share["id"])
    expect(mine.write(WRITER, share, "second") == "", "the file is overwritten")
    copy = ask("create_share", size=1, snapshot_id=snapshot["id"])
    ask("allow_access", share_id=copy["id"], access_to=WRITER)
    expect(mine.read(WRITER, copy) == "first", "a share from the snapshot has the old content")
    expect(mine.read(WRITER, share) == "second", "and the share the new")

    say("quota")
    expect(mine.fill(WRITER, share, 1) == FULL, "1 GiB is enforced")
    ask("extend_share", share_id=share["id"], new_size=2)
    expect(mine.write(WRITER, share, "more") == "", "extended to 2 GiB, it takes more")
    expect(mine.fill(WRITER, share, 2) == FULL, "and 2 GiB is enforced")
    return copy, snapshot


def main() -> int:
    began = time.monotonic()
    missing = missing_for_nfs()
    real = not missing
    if missing:
        say(f"No NFS on this machine: {'; '.join(missing)}. The story is told on the fakes.")
    before = Machine.look()
    home = Path(tempfile.mkdtemp(prefix="sharewright-story-"))
    service = Service.up(home)
    say(f"sharewright is up in {time.monotonic() - began:.1f} s: {home}")
    try:
        tell(service, real=real)
        left = list(leftovers.of_tables(engine_for(service.database_url)))
    except BaseException:
        say((home / "up.log").read_text(errors="replace")[-4000:])
        raise
    finally:
        service.close()
    Process(
        python("scheduler.cli", "decommission", "--home", str(home)), log=home / "decommission.log"
    ).start().wait(60)
    shutil.rmtree(home)
    left += leftovers.of_machine(before, Machine.look())
    for sentence in left:
        say(f"LEFT: {sentence}")
    if left:
        return 1
    seconds = time.monotonic() - began
    if real:
        say(f"OK: from a message to files over NFS and back to nothing in {seconds:.1f} s.")
    else:
        say(f"OK (fakes): the same story without NFS, in {seconds:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
