"""Types of fields that several requests have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints


def _without_nul(value: str) -> str:
    # JSON allows this character in strings, PostgreSQL's text does not.
    if "\0" in value:
        raise ValueError("contains a NUL character")
    return value


def whole(value: Any) -> Any:
    """Refuse values that pydantic would take for a whole number and JSON Schema would not."""
    if isinstance(value, (bool, float)):
        raise ValueError("should be a whole number")  # noqa: TRY004 - pydantic's word for it
    return value


Id = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:-]+$")]
Storable = AfterValidator(_without_nul)
Name = Annotated[str, StringConstraints(max_length=255), Storable]
Description = Annotated[str, StringConstraints(max_length=4096), Storable]
Text = Annotated[str, StringConstraints(min_length=1, max_length=255), Storable]
Label = Annotated[str, StringConstraints(max_length=64), Storable]
Metadata = Annotated[dict[Text, Name], Field(max_length=64)]
Size = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
