"""What the workers' consumer does to a message before Celery acts on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.messaging.consumer import note_queue

TAGS = {"requests": "None4", "requests.admin": "None5"}


@pytest.mark.parametrize(
    ("told", "noted"),
    [
        # AMQP: published over an exchange of the producer's own, with a key of his choice.
        (
            {"consumer_tag": "None4", "exchange": "mine", "routing_key": "requests.admin"},
            {"consumer_tag": "None4", "exchange": "", "routing_key": "requests"},
        ),
        (
            {"consumer_tag": "None5", "exchange": "", "routing_key": "requests.admin"},
            {"consumer_tag": "None5", "exchange": "", "routing_key": "requests.admin"},
        ),
        # Redis: our transport has written the list that it was taken from.
        (
            {"exchange": "", "routing_key": "requests"},
            {"exchange": "", "routing_key": "requests"},
        ),
    ],
)
def test_the_queue_is_the_one_that_was_consumed(
    told: dict[str, Any], noted: dict[str, Any]
) -> None:
    message = SimpleNamespace(delivery_info=dict(told))
    note_queue(message, TAGS)
    assert message.delivery_info == noted
