"""The whole way once, as ``make run`` tells it: from a message to files over NFS, and back.

Starts ``sharewright up`` in a directory of its own, asks for everything by message, looks at it
as tenants do, and looks at the end for what is left of it. Where the machine cannot serve NFS, it
says what is missing and tells the same story on the fakes; each line says so.

It runs in namespaces of its own where that is allowed: there it sees whatever it leaves, and
others on the machine do not disturb it. Elsewhere it looks for what bears its own marks.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.service.defaults import missing_for_nfs
from tests.support import leftovers
from tests.support.embedded import EmbeddedService
from tests.support.isolation import isolated, refusal
from tests.support.services import Process, python
from tests.support.tenants import Machine, run
from tests.support.views import DENIED, FULL, READ_ONLY, FakeView, NfsView, View
from worker.systems.fake_world import World

WRITER, READER, STRANGER = "10.98.0.5", "10.98.0.6", "10.98.0.7"
FAKE_BACKEND = Path("state/backends/fake")
INSIDE, OUTSIDE = "--inside", "--outside"
"""What the program is told: it runs in namespaces of its own; it is to make none."""


def say(text: str) -> None:
    print(text, flush=True)


@dataclass
class Story:
    """What happens, told while it is done."""

    service: EmbeddedService
    real: bool

    def say(self, text: str) -> None:
        say(text if self.real else f"{text} (fake)")

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            raise AssertionError(f"not so: {what}")
        self.say(f"  - {what}")

    def ask(self, project: str, verb: str, **fields: Any) -> dict[str, Any]:
        began = time.monotonic()
        answer = self.service.ask(project, verb, **fields)
        self.say(f"  {verb:22} {(time.monotonic() - began) * 1000:6.0f} ms")
        return answer

    @contextmanager
    def views(self, *made: tuple[str, dict[str, Any]]) -> Iterator[list[View]]:
        """Open what tenants see of their shares, each from its own network."""
        opened = [self._view(project, share) for project, share in made]
        try:
            yield opened
        finally:
            for view in opened:
                view.close()

    def _view(self, project: str, share: dict[str, Any]) -> View:
        if not self.real:
            world = World(self.service.home / FAKE_BACKEND / "world.db")
            return FakeView(world, share["share_network_id"])
        return NfsView(self.service.bridge(project, share), 24)

    def tell(self) -> None:
        self.say("two tenants ask for a share each, by message")
        networks = {project: self.service.network(project) for project in ("tenant-a", "tenant-b")}
        share, other = (
            self.ask(project, "create_share", name="docs", size=1, share_network_id=network)
            for project, network in networks.items()
        )
        self.say(f"  export: {share['export_locations'][0]['path']}")
        with self.views(("tenant-a", share), ("tenant-b", other)) as (mine, theirs):
            copy, snapshot = self._use(share, mine, theirs)
        self.say("all is deleted")
        self.ask("tenant-a", "delete_share", share_id=copy["id"])
        self.ask("tenant-a", "delete_snapshot", snapshot_id=snapshot["id"])
        self.ask("tenant-a", "delete_share", share_id=share["id"])
        self.ask("tenant-b", "delete_share", share_id=other["id"])
        self.service.settle()
        for project, network in networks.items():
            self.ask(project, "delete_share_network", share_network_id=network)

    def _use(
        self, share: dict[str, Any], mine: View, theirs: View
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        def ask(verb: str, **fields: Any) -> dict[str, Any]:
            return self.ask("tenant-a", verb, **fields)

        expect = self.expect
        self.say("access")
        expect(mine.read(WRITER, share) == DENIED, "without a rule nobody gets in")
        ask("allow_access", share_id=share["id"], access_to=WRITER)
        rule = ask("allow_access", share_id=share["id"], access_to=READER, access_level="ro")
        expect(
            mine.write(WRITER, share, "first") == "", "a file is written from the tenant's network"
        )
        expect(mine.read(WRITER, share) == "first", "and read back")
        expect(
            not theirs.reaches(STRANGER, share) or theirs.read(STRANGER, share) == DENIED,
            "another tenant's network does not reach it",
        )
        expect(mine.read(READER, share) == "first", "a read-only client reads")
        expect(mine.write(READER, share, "no") == READ_ONLY, "and is refused a write")
        ask("deny_access", share_id=share["id"], access_id=rule["id"])
        expect(mine.read(READER, share) == DENIED, "once denied, it is refused")

        self.say("snapshot")
        snapshot = ask("create_snapshot", share_id=share["id"])
        expect(mine.write(WRITER, share, "second") == "", "the file is overwritten")
        copy = ask("create_share", size=1, snapshot_id=snapshot["id"])
        ask("allow_access", share_id=copy["id"], access_to=WRITER)
        expect(mine.read(WRITER, copy) == "first", "a share from the snapshot has the old content")
        expect(mine.read(WRITER, share) == "second", "and the share the new")

        self.say("quota")
        expect(mine.fill(WRITER, share, 1) == FULL, "1 GiB is enforced")
        ask("extend_share", share_id=share["id"], new_size=2)
        expect(mine.write(WRITER, share, "more") == "", "extended to 2 GiB, it takes more")
        expect(mine.fill(WRITER, share, 2) == FULL, "and 2 GiB is enforced")
        return copy, snapshot


def main() -> int:
    began = time.monotonic()
    missing = missing_for_nfs()
    if INSIDE not in sys.argv and OUTSIDE not in sys.argv:
        refused = refusal() if os.geteuid() == 0 else "this is not root"
        if not refused:
            command = isolated(python("tests.story", INSIDE))
            os.execvp(command[0], command)
        say(f"No namespaces of the story's own ({refused}): what has no mark of it is not seen.")
    if missing:
        say(f"No NFS on this machine: {'; '.join(missing)}. The story is told on the fakes.")
    left = live(real=not missing, alone=INSIDE in sys.argv)
    for sentence in left:
        say(f"LEFT: {sentence}")
    if left:
        return 1
    seconds = time.monotonic() - began
    if missing:
        say(f"OK (fakes): the same story without NFS, in {seconds:.1f} s.")
    else:
        say(f"OK: from a message to files over NFS and back to nothing in {seconds:.1f} s.")
    return 0


def live(*, real: bool, alone: bool) -> list[str]:
    """Tell the story from beginning to end; return what is left, each thing once."""
    if alone:
        # What the first namespace brings into being stays, and is none of the story's.
        run("ip", "netns", "add", "first")
        run("ip", "netns", "del", "first")
    before = Machine.whole()
    home = Path(tempfile.mkdtemp(prefix="sharewright-story-"))
    began = time.monotonic()
    service = EmbeddedService.up(home)
    say(f"sharewright is up in {time.monotonic() - began:.1f} s: {home}")
    try:
        Story(service, real).tell()
        left = [*leftovers.of_tables(service.engine)]
        marks = leftovers.marks(home, service.engine)
    except BaseException:
        say((home / "up.log").read_text(errors="replace")[-4000:])
        raise
    finally:
        service.close()
    Process(
        python("scheduler.cli", "decommission", "--home", str(home)), log=home / "decommission.log"
    ).start().wait()
    if real:
        left += leftovers.of_files(home / "state")
    else:
        left += leftovers.of_fakes(World(home / FAKE_BACKEND / "world.db"))
    shutil.rmtree(home)
    left += leftovers.of_run(marks)
    if alone:
        left += leftovers.of_namespaces(before, Machine.whole(), home)
        left += leftovers.of_files(Path("/run"), kept=leftovers.SHARED_FILES)
    return list(dict.fromkeys(left))


if __name__ == "__main__":
    sys.exit(main())
