"""Quotas of projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "quotas",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("share_type_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("resource", sa.String(length=32), nullable=False),
        sa.Column("maximum", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.CheckConstraint("maximum >= -1", name=op.f("ck_quotas_maximum")),
        sa.PrimaryKeyConstraint("project_id", "share_type_id", "resource", name=op.f("pk_quotas")),
    )
