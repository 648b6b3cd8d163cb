"""Alembic's entry point. It runs on the connection that `cart_grpc.store.migrate` passes."""

from alembic import context

from cart_grpc.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
