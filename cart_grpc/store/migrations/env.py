"""Alembic's entry: it always runs on a connection that `cart_grpc.store.migrate` hands over."""

from alembic import context

from cart_grpc.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
