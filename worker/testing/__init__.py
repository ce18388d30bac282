"""The contract suites: what every driver and helper must do, for plug-ins to inherit.

Needs pytest (``pip install 'sharewright[testing]'``). docs/plugin-author.md says how to run them
from a repository of your own.
"""

from __future__ import annotations

import pytest

# Before the suites are imported: so their failed assertions show values, as a test module's do.
pytest.register_assert_rewrite(
    "worker.testing.share_driver", "worker.testing.compute_helper", "worker.testing.network_helper"
)
