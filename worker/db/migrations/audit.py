"""The part of the first version that is the audit's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def create() -> None:
    op.create_table(
        "tombstones",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("backend", sa.String(length=255), nullable=False),
        sa.Column("gone_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_tombstones")),
    )
    op.create_index(op.f("ix_tombstones_gone_at"), "tombstones", ["gone_at"], unique=False)
    op.create_table(
        "audit_findings",
        sa.Column("backend", sa.String(length=255), nullable=False),
        sa.Column("part", sa.String(length=255), nullable=False),
        sa.Column("problem", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("thing", sa.String(length=512), nullable=False),
        sa.Column("owner_kind", sa.String(length=32), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("first_seen", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=True),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint(
            "backend", "part", "problem", "kind", "thing", name=op.f("pk_audit_findings")
        ),
    )
    op.create_index(
        op.f("ix_audit_findings_owner_id"), "audit_findings", ["owner_id"], unique=False
    )
