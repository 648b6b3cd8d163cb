"""What is durable: SQL for SQLite and PostgreSQL, written in groups, migrated by Alembic."""
