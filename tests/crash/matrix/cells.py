"""What is combined with what: one cell is one run, and is written ``verb:failpoint:fault``."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, product
from typing import Final

from tests.crash.matrix.points import all_points

SINGLE, FLAT, MANAGED = MODES = ("single", "flat", "managed")

FAULTS: Final = {
    "kill": "SIGKILL of the pool child",
    "kill-main": "SIGKILL of the main process, and its child ends with it",
    "raise": "an exception that may pass",
    "fatal": "an exception for good",
    "lost": "the effect is done and its answer is lost",
    "hang": "a hang past the step's time and its lease",
    "stop": "SIGSTOP past the lease; SIGCONT when another has ended the operation",
    "stop-long": "SIGSTOP; SIGCONT when all that the run made is deleted again",
    "kill-twice": "SIGKILL of the pool child, and of the next one at the same place",
    "stale": "SIGSTOP after the commit; its old message comes when a newer one's worker is dead",
}
_ANYWHERE: Final = ("kill", "kill-main", "raise", "hang", "stop", "stop-long")
_AROUND: Final[dict[str, Sequence[str]]] = {
    "before": (*_ANYWHERE, "fatal"),
    "after_join": (*_ANYWHERE, "fatal"),
    "outside": (*_ANYWHERE, "fatal"),
    "after_release": (*_ANYWHERE, "fatal"),
    "after_export": (*_ANYWHERE, "fatal"),
    "after_effect": ("kill", "kill-main", "lost", "hang", "stop", "stop-long", "fatal"),
    "before_commit": _ANYWHERE,
    "after_commit": _ANYWHERE,
    "after_publish": _ANYWHERE,
    "failed": _ANYWHERE,
    "compensation_started": _ANYWHERE,
}
RECONCILER_POINT: Final = "reconcile.after_redrive"
"""A reconciler is struck when it has taken up an operation and not yet published it."""
STAGES: Final = ("before", "after_effect", "before_commit", "after_commit", "after_publish")

NOT_COMBINED: Final = {
    "fatal at before_commit, after_commit, after_publish, failed, "
    "compensation_started and at intake": (
        "these lie outside of the step's own try: any exception there is the same as raise"
    ),
    "raise at after_effect": "it is what lost does, there by the fakes' own armed fault",
    "lost elsewhere than at after_effect": "no effect has just been done there",
    "kill-twice outside of undos": "the second kill is one more attempt of the same kind",
    "kill-twice at after_commit and after_publish": "a finished step is not begun again",
    "stop-long at intake.before_commit": (
        "the open transaction holds its rows: nobody else can accept it before it goes on"
    ),
    "kill-main at reconcile.after_redrive": "a reconciler is one process",
    "ensuring a predefined server": "all runs share the backend, and so its one operation",
    "stale elsewhere than after allocate_network's commit": "one old message is like another",
    "a stop between guard() and the effect": (
        "nothing can exclude it; what it leaves is the audit's, and its tests plant such things"
    ),
}

_SERVER: Final = ("allocate_network", "get_share_server")
_UNDO_SERVER: Final = ("delete_share_server", "deallocate_network")
_ENSURE: Final = ("ensure_share_server", "ensure_shares", "ensure_share")


@dataclass(frozen=True, slots=True)
class Verb:
    """What a run asks for: the acts that are hit, and what turns the operation round first.

    ``builds``: the run's operation makes its server (and passes ``after_join``); ``destroys``: it
    is the one that deletes it (and passes ``after_release``).
    """

    name: str
    mode: str
    actions: Sequence[str]
    compensation_of: str | None = None
    builds: bool = False
    destroys: bool = False
    intake: bool = False

    @property
    def full_name(self) -> str:
        """As it stands in a cell's name."""
        return f"{self.name}/{self.mode}"

    def call_of(self, action: str) -> str | None:
        """What a step calls in the fakes' world: nothing for addresses of our own, nor twice."""
        if action in {"allocate_network", "deallocate_network"} and self.mode == FLAT:
            return None
        if action == "ensure_shares":  # it only starts other operations
            return None
        if action == "delete_share" and self.full_name == f"cancel/{FLAT}":  # it was never begun
            return None
        if (action in _UNDO_SERVER and not self.destroys) or (
            action in _SERVER and not self.builds
        ):
            return None
        if action == "create_share" and self.name == "from-snapshot":
            return "create_share_from_snapshot"
        return "get_share_server" if action == "ensure_share_server" else action

    @property
    def action(self) -> str:
        """What it does, without the way it comes to fail."""
        return self.name.partition("-undone")[0]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    verb: Verb
    point: str
    fault: str

    def __str__(self) -> str:
        return f"{self.verb.full_name}:{self.point}:{self.fault}"


def _verbs() -> Iterator[Verb]:
    for mode in MODES:
        served = mode != SINGLE
        create = (*_SERVER, "create_share") if served else ("create_share",)
        compensation = ("delete_share", *_UNDO_SERVER) if served else ("delete_share",)
        yield Verb("create", mode, create, builds=True, intake=True)
        yield Verb(
            "create-undone", mode, compensation, compensation_of="create_share", destroys=True
        )
        yield Verb("cancel", mode, compensation, destroys=True)
        yield Verb("from-snapshot", mode, create, intake=mode == FLAT)
        yield Verb("delete", mode, ("delete_share",), intake=mode == FLAT)
        for name, action in (
            ("extend", "extend_share"),
            ("allow", "update_access"),
            ("deny", "update_access"),
            ("snapshot", "create_snapshot"),
            ("delete-snapshot", "delete_snapshot"),
        ):
            yield Verb(name, mode, (action,), intake=mode == FLAT)
        yield Verb("snapshot-undone", mode, ("delete_snapshot",), compensation_of="create_snapshot")
        if served:
            yield Verb("clean-up", mode, _UNDO_SERVER, destroys=True)
            yield Verb("ensure", mode, _ENSURE)
            yield Verb(
                "create-undone-server",
                mode,
                _UNDO_SERVER,
                compensation_of="get_share_server",
                destroys=True,
            )
            yield Verb(
                "create-undone-network",
                mode,
                _UNDO_SERVER[1:],
                compensation_of="allocate_network",
                destroys=True,
            )
    # What is only rows is made at once, by the request itself.
    yield Verb("network", FLAT, (), intake=True)
    yield Verb("delete-network", FLAT, (), intake=True)
    yield Verb("join", FLAT, (*_SERVER, "create_share"))
    yield Verb("join-undone", FLAT, ("delete_share", *_UNDO_SERVER), compensation_of="create_share")


VERBS: Final = {verb.full_name: verb for verb in _verbs()}
_INTAKE: Final = ("intake.before_commit", "intake.after_commit", "intake.after_publish")


def _of_act(verb: Verb, action: str) -> Iterator[Cell]:
    stages = [*STAGES, "failed"]
    if action == "allocate_network" and verb.builds:
        stages.append("after_join")
    if action in _UNDO_SERVER and verb.destroys:
        stages.append("after_release")
    if action == "ensure_share":
        stages.append("after_export")
    call = verb.call_of(action)
    if call is not None:
        stages.append("outside")
    undoes = verb.compensation_of is not None or verb.name == "cancel"
    for stage in stages:
        name = call if stage == "outside" else action
        twice = ("kill-twice",) if undoes and stage in STAGES[:3] else ()
        yield from (Cell(verb, f"{name}.{stage}", fault) for fault in (*_AROUND[stage], *twice))


def _cells_of(verb: Verb) -> Iterator[Cell]:
    for action in verb.actions:
        yield from _of_act(verb, action)
    points: list[str] = []
    if verb.compensation_of is not None:
        points += [f"{verb.compensation_of}.failed", f"{verb.actions[0]}.compensation_started"]
    if verb.intake:
        points += _INTAKE
    for point, fault in product(points, _ANYWHERE):
        if (point, fault) != ("intake.before_commit", "stop-long"):
            yield Cell(verb, point, fault)
    if verb.full_name == f"create/{FLAT}":
        yield Cell(verb, "allocate_network.after_commit", "stale")
        for fault in ("kill", "raise", "hang", "stop", "stop-long"):
            yield Cell(verb, RECONCILER_POINT, fault)


ALL: Final = tuple(chain.from_iterable(_cells_of(verb) for verb in VERBS.values()))
BY_NAME: Final = {str(cell): cell for cell in ALL}

ELSEWHERE: Final = {
    "get_share_server.after_plug": "the namespace helper's: tests/crash/test_real_backend.py",
    "get_share_server.after_address": "the namespace helper's: tests/crash/test_real_backend.py",
    "create_share.after_storage": "the generic driver's: tests/crash/test_real_backend.py",
    "neutron.*": "the neutron helper's: tests/crash/test_real_neutron.py",
    "nova.after_port": "the nova helper's: tests/contract/test_nova.py",
    "nova.after_create": "the nova helper's: tests/contract/test_nova.py",
    "nova.after_delete": "the nova helper's: tests/contract/test_nova.py",
    "nova.after_extra_deleted": "the nova helper's: tests/contract/test_nova.py",
    "ironic.*": "the ironic helper's: tests/integration/test_ironic.py",
    "audit_backend.failed": "what an audit cannot do is in its result; only a defect leads here",
    "audit_backend.*": "the audit's: tests/integration/test_operator.py",
}
"""Failpoints that no run on the fakes passes, and where they are tried; ``*`` for anything."""


def elsewhere(point: str) -> str | None:
    """Where a failpoint is tried that is not in the matrix."""
    places = (place for name, place in ELSEWHERE.items() if fnmatchcase(point, name))
    return next(places, None)


def forgotten() -> set[str]:
    """Failpoints of the source that no cell has, and that nobody says why."""
    tried = {cell.point for cell in ALL}
    return {point for point in all_points() - tried if elsewhere(point) is None}


def sample(seed: int = 5) -> tuple[Cell, ...]:
    """A fair part of them, always the same: each failpoint, and each verb with each fault."""
    cells = list(ALL)
    random.Random(seed).shuffle(cells)
    chosen: list[Cell] = []
    met: set[tuple[str, str]] = set()
    for cell in cells:
        new = {(cell.point, ""), (cell.verb.action, cell.fault)} - met
        if new:
            chosen.append(cell)
            met |= new
    return tuple(chosen)
