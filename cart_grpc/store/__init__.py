"""SQL for SQLite and PostgreSQL: how rows are read, written and committed, and nothing else.

What a transaction changes is decided in `commands` and `carts`. A write passes `write_queue`, `batch_writer`,
`batch`, `queries` and `statements`, in this order.
"""
