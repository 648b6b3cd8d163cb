"""A bounded look at many rows, so that a filter that lets nothing through cannot scan a whole table in one call."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, Subquery, func, select

# The number of rows that one call looks at. Reading and filtering them takes a few hundredths of a second.
LOOK: Final = 5_000


def look_at(rows: Select[Any], key: Sequence[str], look: int) -> Subquery:
    """The first `look` of `rows` by `key`, each with its `number` from 1, and whether it `is_last` of them.

    The caller filters them, but keeps the last one: from its key on, the next call looks further.
    """
    columns = [rows.selected_columns[name] for name in key]
    window = rows.order_by(*columns).limit(look).subquery("looked")
    order = [window.c[name] for name in key]
    number = func.row_number().over(order_by=order).label("number")
    is_last = func.lead(window.c[key[-1]]).over(order_by=order).is_(None).label("is_last")
    return select(window, number, is_last).subquery("numbered")
