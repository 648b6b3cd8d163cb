"""Everything durable: SQL for SQLite and PostgreSQL, and nothing else.

What a transaction decides is in `commands` and `carts`; here is how it is read, written and committed.
"""
