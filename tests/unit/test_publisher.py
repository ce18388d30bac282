"""Publishing chains."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.support.engine import EngineBench
from worker.app import make_app
from worker.engine.publisher import publisher
from worker.engine.saga import Sagas
from worker.tasks.sagas import SAGAS


def test_what_a_release_does_not_know_is_not_published(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And does not keep the others of its batch from being published."""
    with EngineBench(tmp_path, sqlite_url) as bench:
        bench.create()
        (dispatch,) = bench.dispatches
        app = make_app(bench.config)
        publish = publisher(app, Sagas(saga for saga in SAGAS if saga.name != dispatch.saga))
        with caplog.at_level(logging.WARNING):
            publish(dispatch)  # there is no broker: a message would fail
    assert f"Operation {dispatch.operation_id} is not published" in caplog.text
