"""Failures of a step: how many, and since when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "operations", sa.Column("failures", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("operations", sa.Column("failing_since", sa.Float(), nullable=True))
