"""The suites are plain modules: have their assertions explained as those of test modules are."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.contract.shell_suite",
    "tests.contract.generic_driver_suite",
)
