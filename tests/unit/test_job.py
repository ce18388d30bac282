"""A broker that is away costs a warning, not the step that was committed just before."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.support.services import free_port
from tests.support.tables import accept, tables
from worker.app import make_app
from worker.config import Config


@pytest.fixture
def runtime(sqlite_url: str) -> Any:
    tables(sqlite_url)
    away = f"redis://127.0.0.1:{free_port()}"
    config = Config.model_validate(
        {
            "database": {"url": sqlite_url},
            "broker": {"url": f"{away}/0", "result_backend": f"{away}/1"},
        }
    )
    app = make_app(config)
    # Celery tries twenty times, for a minute; what comes after that is looked at here.
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
    return app.sharewright_runtime()


def test_a_broker_that_is_away_leaves_a_warning(
    runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, dispatch = accept(runtime.engine)
    with caplog.at_level(logging.WARNING):
        runtime.publish_all([dispatch])
    assert "could not be published" in caplog.text


def test_a_result_backend_that_is_away_leaves_a_warning(
    runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    operation_id, _ = accept(runtime.engine)
    with caplog.at_level(logging.WARNING):
        runtime.deliver(operation_id, {"id": operation_id}, None)
    assert "could not be stored" in caplog.text
