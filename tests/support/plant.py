"""One leftover of each kind, planted for a while: with a run's mark, or without any.

As a program, inside namespaces of its own: plants one without a mark and prints what is found.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support import leftovers
from tests.support.services import wait_until
from tests.support.tenants import Machine, run
from worker.systems.network.bridges import short

Planted = Callable[[Path, str], AbstractContextManager[None]]
"""Takes the run's home and the id of one of its objects."""
SLEEP = "import time; time.sleep(600)"


@contextmanager
def namespace(_home: Path, name: str) -> Iterator[None]:
    run("ip", "netns", "add", f"sw-{name}")
    try:
        yield
    finally:
        run("ip", "netns", "del", f"sw-{name}")


@contextmanager
def link(_home: Path, name: str) -> Iterator[None]:
    bridge = f"swb{short(name)}"
    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        yield
    finally:
        run("ip", "link", "del", bridge)


@contextmanager
def mount(home: Path, name: str) -> Iterator[None]:
    target = home / f"mount-{name}"
    target.mkdir()
    run("mount", "-t", "tmpfs", "planted", str(target))
    try:
        yield
    finally:
        run("umount", str(target))


@contextmanager
def loop(home: Path, name: str) -> Iterator[None]:
    image = home / f"{name}.img"
    run("truncate", "-s", "1M", str(image))
    device = run("losetup", "--find", "--show", str(image)).strip()
    try:
        yield
    finally:
        run("losetup", "--detach", device)


@contextmanager
def process_by_command_line(home: Path, _name: str) -> Iterator[None]:
    with _process(sys.executable, "-c", SLEEP, str(home / "state")):
        yield


@contextmanager
def process_by_open_file(home: Path, name: str) -> Iterator[None]:
    held = home / f"held-{name}"
    opens = f"import sys; held = open(sys.stdin.readline().strip(), 'w'); {SLEEP}"
    with _process(sys.executable, "-c", opens, told=str(held)):
        wait_until(held.exists, "the file is open")
        yield


@contextmanager
def process_by_directory(home: Path, _name: str) -> Iterator[None]:
    with _process(sys.executable, "-c", SLEEP, cwd=home):
        yield


@contextmanager
def file(home: Path, name: str) -> Iterator[None]:
    path = home / "state" / f"file-{name}"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def _process(*command: str, told: str = "", cwd: Path | None = None) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=cwd, text=True)
    assert process.stdin is not None
    try:
        process.stdin.write(f"{told}\n")
        process.stdin.flush()
        yield
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def main() -> None:
    """Plant what the first argument names, elsewhere than in the home that is looked for."""
    plant: Planted = globals()[sys.argv[1]]
    run("ip", "netns", "add", "first")
    run("ip", "netns", "del", "first")
    before = Machine.whole()
    with tempfile.TemporaryDirectory(dir="/run") as elsewhere:
        home = Path(elsewhere)
        with plant(home, "nobodys"):
            for sentence in leftovers.of_namespaces(before, Machine.whole(), home):
                print(sentence)
            for sentence in leftovers.of_files(Path("/run")):
                print(sentence)
        print("then")
        for sentence in leftovers.of_namespaces(before, Machine.whole(), home):
            print(sentence)


if __name__ == "__main__":
    main()
