"""The contract for errors of a plug-in; the suites check every error that is raised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from worker.errors import ErrorCode, ObjectKind, StepError


class DocumentedErrors:
    """Base class of the contract suites: the tests of errors."""

    foreign_codes: ClassVar[frozenset[ErrorCode]] = frozenset()
    """Error codes of other kinds of plug-in, which this one must not use."""

    @pytest.fixture(autouse=True)
    def every_error_is_documented(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Check that each error names a documented kind of object and no other plug-in's code."""
        made: list[StepError] = []
        initialise = StepError.__init__

        def record(error: StepError, *arguments: Any, **named: Any) -> None:
            initialise(error, *arguments, **named)
            made.append(error)

        monkeypatch.setattr(StepError, "__init__", record)
        yield
        for error in made:
            kind, _, object_id = error.object.partition(" ")
            assert not error.object or (kind in set(ObjectKind) and object_id), repr(error.object)
            assert error.code not in self.foreign_codes, error.message
