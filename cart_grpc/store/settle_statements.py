"""The SQL that records the common answers without reading their rows: see `settle`."""

from typing import Any

from sqlalchemy import Boolean, ColumnElement, Executable, FromClause, Update, literal_column, null, select, update

from cart_grpc.store import schema
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.statements import CART, RESERVATION

# The columns that `settle` compares with the row as it was claimed.
UNCHANGED = ("revision", "lease_epoch", "observed_revision", "expire_time")
# The columns that `settle` writes, besides the end of the lease.
SETTLED = ("state", "granted_quantity", "expire_time", "observed_revision", "reason", "reserved_cap", "due_time")
# The columns of the rows that are given to `settle`.
SETTLING = {
    **{name: schema.reservations.c[name].type for name in RESERVATION},
    **{f"old_{name}": schema.reservations.c[name].type for name in UNCHANGED},
    **{f"new_{name}": schema.reservations.c[name].type for name in SETTLED},
    "is_visible": Boolean(),
}


def settle(dialect: Dialect) -> Executable:
    """Write answers into reservations that are as they were claimed, still leased, and never attempted.

    Returns the ids of these reservations.
    """
    return _settle(dialect)[0].returning(schema.reservations.c.reservation_id)


def settle_and_raise(dialect: Dialect) -> Executable:
    """As `settle`, and raise the revisions of the carts in which an answer is visible. Their users are locked."""
    update_rows, answers = _settle(dialect)
    columns = [schema.reservations.c[name] for name in ("reservation_id", *CART)]
    settled = update_rows.returning(*columns, answers.c.is_visible).cte("settled")
    carts = select(*(settled.c[name] for name in CART)).where(settled.c.is_visible).distinct().subquery("visible")
    return select(settled.c.reservation_id).add_cte(_raise_revisions(dialect, carts).cte("raised"))


def raise_revisions(dialect: Dialect) -> Executable:
    """Raise the revisions of carts whose users are locked. A cart that is gone is skipped."""
    return _raise_revisions(dialect, dialect.given_rows({name: schema.carts.c[name].type for name in CART}))


def _settle(dialect: Dialect) -> tuple[Update, FromClause]:
    table = schema.reservations
    answers, is_found = dialect.find_rows(table, RESERVATION, dialect.given_rows(SETTLING))
    values: dict[str, Any] = {name: answers.c[f"new_{name}"] for name in SETTLED}
    values |= {"lease_expire_time": null(), "last_error": literal_column("''")}
    return update(table).where(is_found, *as_claimed(answers)).values(values), answers


def _raise_revisions(dialect: Dialect, carts: FromClause) -> Update:
    table = schema.carts
    _, is_found = dialect.find_rows(table, CART, carts)
    return (
        update(table).where(is_found).values(revision=table.c.revision + literal_column("1")).returning(table.c.slice)
    )


def as_claimed(answers: FromClause) -> list[ColumnElement[bool]]:
    """The guards of `settle`. Together they notice every change that the full way of recording would see."""
    table = schema.reservations
    return [
        # A new intent, another claim, another answer, and a clock that was set back.
        *(table.c[name].is_not_distinct_from(answers.c[f"old_{name}"]) for name in UNCHANGED),
        # The claim was returned, its call got no answer, or the row was set aside.
        table.c.lease_expire_time.is_not(None),
        # An attempt was opened.
        table.c.uncertain_until.is_(None),
    ]
