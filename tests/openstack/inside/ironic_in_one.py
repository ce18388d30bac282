"""Ironic's API and conductor in one process, with the patience that SQLite needs (``serve``).

Usage: ironic_in_one.py --config-file FILE
"""

from __future__ import annotations

import sys

import serve  # noqa: F401 - it makes every connection patient
from ironic.command.singleprocess import main

if __name__ == "__main__":
    sys.exit(main())
