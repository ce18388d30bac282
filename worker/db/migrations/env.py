"""Alembic's way in: the connection comes from :mod:`worker.db.schema`, which holds the lock."""

from alembic import context

from worker.db.tables.all import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
