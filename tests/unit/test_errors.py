"""The error tree, and how a failed request looks to a producer with and without our package."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.backends.base import Backend

from tests.support.plain import run_plain
from tests.support.services import ROOT
from worker.errors import (
    ErrorCode,
    Fatal,
    InvalidRequest,
    NoCapacity,
    NotFound,
    Refused,
    RequestFailed,
    Retryable,
    SharewrightError,
)

FAILURE = RequestFailed("not_found", "There is no share s1.", "share s1", "share_id")


def every(kind: type[SharewrightError]) -> Iterator[type[SharewrightError]]:
    for one in kind.__subclasses__():
        yield one
        yield from every(one)


@pytest.fixture
def backend() -> Backend:
    return Celery(set_as_current=False, backend="cache+memory://").backend


def test_a_round_trip_with_the_package(backend: Backend) -> None:
    wire = json.loads(json.dumps(backend.prepare_exception(FAILURE, serializer="json")))
    rebuilt = backend.exception_to_python(wire)
    assert type(rebuilt) is RequestFailed
    assert rebuilt.args == FAILURE.args
    assert (rebuilt.code, rebuilt.message, rebuilt.object, rebuilt.field) == FAILURE.args


def test_a_round_trip_without_the_package(backend: Backend, tmp_path: Path) -> None:
    wire = json.dumps(backend.prepare_exception(FAILURE, serializer="json"))
    script = tmp_path / "rebuild.py"
    script.write_text(
        "import json, sys\n"
        "from celery import Celery\n"
        "backend = Celery(backend='cache+memory://').backend\n"
        "error = backend.exception_to_python(json.loads(sys.argv[1]))\n"
        "assert isinstance(error, Exception)\n"
        "print(json.dumps([type(error).__name__, list(error.args)]))\n"
    )
    ended = run_plain(script, wire, directory=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == ["RequestFailed", list(FAILURE.args)]


def test_it_can_be_pickled_between_processes() -> None:
    assert pickle.loads(pickle.dumps(FAILURE)).args == FAILURE.args


def test_what_operations_record_is_what_producers_get() -> None:
    error = NotFound("There is no share s1.", object="share s1", field="share_id")
    assert RequestFailed.from_json(json.loads(json.dumps(error.to_json()))).args == FAILURE.args


def test_it_reads_as_a_sentence() -> None:
    assert str(FAILURE) == "not_found: There is no share s1. [share s1] (field share_id)"


@pytest.mark.parametrize("kind", sorted(every(SharewrightError), key=lambda kind: kind.__name__))
def test_every_error_has_a_documented_code(kind: type[SharewrightError]) -> None:
    assert kind.code in ErrorCode
    assert kind.__doc__


def test_an_error_may_have_a_code_of_its_own() -> None:
    error = Fatal("The address pool is empty.", code=ErrorCode.ADDRESSES_EXHAUSTED)
    assert error.to_json()["code"] == "addresses_exhausted"


def test_a_fatal_error_says_what_failed() -> None:
    with pytest.raises(TypeError, match="code"):
        Fatal("It is broken.")  # type: ignore[call-arg] # on purpose


@pytest.mark.parametrize(
    "source",
    sorted([*ROOT.glob("worker/**/*.py"), *ROOT.glob("scheduler/**/*.py")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_kind_of_an_object_is_spelled_in_one_place(source: Path) -> None:
    literal = [
        f"{source}:{call.lineno}"
        for call in ast.walk(ast.parse(source.read_text()))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg in {"object", "about"} and _begins_with_text(keyword.value)
    ]
    assert literal == [], "use ObjectKind.<KIND>.ref(id)"


def _begins_with_text(value: ast.expr) -> bool:
    if isinstance(value, ast.JoinedStr):
        value = value.values[0]
    return isinstance(value, ast.Constant) and bool(value.value)


def test_fatal_and_retryable_are_classes_apart() -> None:
    assert not issubclass(Fatal, Retryable)
    assert not issubclass(Retryable, Fatal)
    assert not issubclass(Refused, (Fatal, Retryable))


def test_a_failed_step_may_carry_the_server_that_exists() -> None:
    assert Retryable("It does not answer.", share_server_id="vm-7").share_server_id == "vm-7"


def test_no_capacity_keeps_the_reasons() -> None:
    error = NoCapacity("None fits.", refusals={"b#p": "it has 1 GiB free"})
    assert error.refusals == {"b#p": "it has 1 GiB free"}
    assert error.to_json()["code"] == "no_valid_backend"


def test_an_invalid_request_names_the_field() -> None:
    assert InvalidRequest("No.", field="size").to_json() == {
        "code": "invalid_request",
        "message": "No.",
        "object": "",
        "field": "size",
    }
