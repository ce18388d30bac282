"""Makes ``docs/flower.png``: Flower after some creates, one rolled back, as a person sees it.

``python -m docs.screenshot``; needs chromium, redis-server and the project's own environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.integration.test_flower import start_flower
from tests.support.deployment import Deployment
from tests.support.services import RedisServer, require
from worker.errors import RequestFailed
from worker.systems.fake_world import World

TARGET = Path(__file__).with_name("flower.png")


def main() -> int:
    """Run a few operations, open Flower's task list and take its picture."""
    os.environ.setdefault("CI", "true")  # what is missing is an error here
    chromium = require("chromium")
    directory = Path(tempfile.mkdtemp(prefix="sharewright-flower-"))
    redis = RedisServer().start()
    deployment = Deployment(directory, f"sqlite:///{directory}/sharewright.db", redis)
    try:
        deployment.start()
        _, port = start_flower(deployment)
        network = deployment.network()
        for _ in range(2):
            deployment.ask("create_share", size=1, share_network_id=network)
        alone = deployment.network(cidr="10.9.0.0/24")
        world = World(directory / "backends" / "fake" / "world.db")
        world.arm("create_share", "fatal", match=alone)
        try:
            deployment.ask("create_share", size=1, share_network_id=alone)
        except RequestFailed:
            deployment.settle()
        subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-component-update", f"--user-data-dir={directory}/chromium"),
                *("--window-size=1500,900", "--virtual-time-budget=8000"),
                *(f"--screenshot={TARGET}", f"http://127.0.0.1:{port}/tasks"),
            ],
            check=True,
            timeout=90,
            capture_output=True,
        )
    finally:
        deployment.close()
        redis.close()
    sys.stdout.write(f"{TARGET}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
