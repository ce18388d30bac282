"""The transition tables: complete, and with the ways out that the engine relies on."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import pytest

from worker.model import (
    ACCESS_TRANSITIONS,
    LIVE_STATES,
    SERVER_TRANSITIONS,
    SHARE_TRANSITIONS,
    SNAPSHOT_TRANSITIONS,
    AccessState,
    OperationState,
    ServerStatus,
    ShareStatus,
    SnapshotStatus,
)
from worker.tasks.sagas import ACTIONS

Transitions = Mapping[tuple[StrEnum, StrEnum], str]

TABLES = [
    pytest.param(SHARE_TRANSITIONS, ShareStatus, ShareStatus.CREATING, id="share"),
    pytest.param(SNAPSHOT_TRANSITIONS, SnapshotStatus, SnapshotStatus.CREATING, id="snapshot"),
    pytest.param(ACCESS_TRANSITIONS, AccessState, AccessState.QUEUED_TO_APPLY, id="access"),
    pytest.param(SERVER_TRANSITIONS, ServerStatus, ServerStatus.NEW, id="server"),
]
tables = pytest.mark.parametrize(("transitions", "statuses", "first"), TABLES)


def reachable(transitions: Transitions, first: StrEnum) -> set[StrEnum]:
    found = {first}
    while more := {new for old, new in transitions if old in found} - found:
        found |= more
    return found


@tables
def test_every_status_can_be_reached(
    transitions: Transitions, statuses: type[StrEnum], first: StrEnum
) -> None:
    assert reachable(transitions, first) == set(statuses)


@tables
def test_every_transition_says_why(
    transitions: Transitions, statuses: type[StrEnum], first: StrEnum
) -> None:
    for (old, new), reason in transitions.items():
        assert old in statuses
        assert new in statuses
        assert old != new
        assert len(reason) > 3


@pytest.mark.parametrize(
    ("transitions", "statuses", "ends"),
    [
        (SHARE_TRANSITIONS, ShareStatus, {ShareStatus.DELETING}),
        (SNAPSHOT_TRANSITIONS, SnapshotStatus, {SnapshotStatus.DELETING}),
        (ACCESS_TRANSITIONS, AccessState, {AccessState.DENYING}),
        (SERVER_TRANSITIONS, ServerStatus, {ServerStatus.DELETING, ServerStatus.ERROR}),
    ],
    ids=["share", "snapshot", "access", "server"],
)
def test_there_is_a_way_to_an_end_from_everywhere(
    transitions: Transitions, statuses: type[StrEnum], ends: set[StrEnum]
) -> None:
    for status in statuses:
        assert reachable(transitions, status) & ends, status


def test_a_server_that_is_deleted_never_lives_again() -> None:
    live = {ServerStatus.NEW, ServerStatus.BUILDING, ServerStatus.ACTIVE}
    assert not reachable(SERVER_TRANSITIONS, ServerStatus.DELETING) & live
    out = {new for old, new in SERVER_TRANSITIONS if old is ServerStatus.DELETING}
    assert out == {ServerStatus.ERROR, ServerStatus.ERROR_DELETING}


def test_a_share_that_is_deleted_never_serves_again() -> None:
    after = reachable(SHARE_TRANSITIONS, ShareStatus.DELETING)
    assert not after & {ShareStatus.AVAILABLE, ShareStatus.CREATING, ShareStatus.EXTENDING}


def test_a_denied_rule_is_never_applied_again() -> None:
    after = reachable(ACCESS_TRANSITIONS, AccessState.QUEUED_TO_DENY)
    assert not after & {AccessState.QUEUED_TO_APPLY, AccessState.APPLYING, AccessState.ACTIVE}


@pytest.mark.parametrize("state", OperationState)
def test_an_operation_is_queued_live_or_ended(state: OperationState) -> None:
    is_live = state in LIVE_STATES
    assert [state is OperationState.PENDING, is_live, state.has_ended].count(True) == 1


def test_no_step_is_named_like_a_status() -> None:
    statuses = {
        str(status)
        for kind in (ShareStatus, SnapshotStatus, AccessState, ServerStatus, OperationState)
        for status in kind
    }
    assert not statuses & set(ACTIONS)
