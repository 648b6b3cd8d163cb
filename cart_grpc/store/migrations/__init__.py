"""The migrations, which Alembic runs from inside this package."""
