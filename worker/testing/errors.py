"""What every error of a plug-in must be; the suites look at each one that is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from worker.errors import ErrorCode, ObjectKind, StepError


class DocumentedErrors:
    """The part of each contract that is about errors."""

    foreign_codes: ClassVar[frozenset[ErrorCode]] = frozenset()
    """Codes that belong to another kind of plug-in."""

    @pytest.fixture(autouse=True)
    def every_error_is_documented(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Each error names one of the documented kinds of object, and no other plug-in's code."""
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
