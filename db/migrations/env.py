"""Alembic runs this file; the connection comes from ``db.migrations.upgrade``."""

from alembic import context

from db import workers
from db.models import Base

assert workers.Worker.metadata is Base.metadata  # its table is one of them

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
