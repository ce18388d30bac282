"""Contract suites for drivers and helpers; a plug-in's tests inherit them.

Needs pytest (``pip install 'sharewright[testing]'``). docs/plugin-author.md says how to run them
from a repository of your own.
"""

from __future__ import annotations

import pytest

# Must precede the import of the suites, so that their failed assertions show values.
pytest.register_assert_rewrite(
    "worker.testing.share_driver", "worker.testing.compute_helper", "worker.testing.network_helper"
)
