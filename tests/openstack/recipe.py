"""Where the files lie that OpenStack's services are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

RECIPE: Final = Path(__file__).resolve().parent
INSIDE: Final = RECIPE / "inside"
