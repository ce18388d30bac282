"""The compose file says what it should; that its commands work is for the integration test."""

from __future__ import annotations

import re

import pytest

from tests.support import compose
from tests.support.services import ROOT
from worker import config

VARIABLES = {"POSTGRES_PASSWORD": "pg", "REDIS_PASSWORD": "rd", "FLOWER_BASIC_AUTH": "me:fl"}
OURS = {"migrate", "scheduler", "scheduler-reads", "worker", "reconciler", "health", "flower"}


def test_it_has_these_services() -> None:
    assert set(compose.load(VARIABLES)) == OURS | {"postgres", "redis"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_role_waits_for_what_it_needs(name: str) -> None:
    service = compose.load(VARIABLES)[name]
    waits = {n: c["condition"] for n, c in service.document["depends_on"].items()}
    if name == "migrate":
        assert waits == {"postgres": "service_healthy"}
        assert service.document["restart"] == "no"
    else:
        assert waits == {"migrate": "service_completed_successfully", "redis": "service_healthy"}
        assert service.document["restart"] == "unless-stopped"
    assert "container_name" not in service.document, "it could not be scaled"


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_role_reads_the_example_and_its_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in compose.load(VARIABLES)[name].environment.items():
        monkeypatch.setenv(variable, value)
    settings = config.load(ROOT / "docs/examples/compose.toml")
    assert settings.database.url == "postgresql+psycopg://sharewright:pg@postgres:5432/sharewright"
    assert settings.broker.url == "redis://:rd@redis:6379/0"
    assert settings.broker.result_backend == "redis://:rd@redis:6379/1"
    assert settings.backends_of("default")


@pytest.mark.parametrize("missing", sorted(VARIABLES))
def test_no_secret_has_a_default(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        compose.load({name: value for name, value in VARIABLES.items() if name != missing})
    named = re.findall(r"^(\w+)=", (ROOT / "docs/examples/compose.env").read_text(), re.MULTILINE)
    assert missing in named


def test_redis_keeps_its_messages() -> None:
    command = compose.load(VARIABLES)["redis"].command
    assert command[command.index("--appendonly") + 1] == "yes"


def test_nothing_listens_beyond_the_host() -> None:
    for service in compose.load(VARIABLES).values():
        for port in service.document.get("ports", ()):
            assert port.startswith("127.0.0.1:")
