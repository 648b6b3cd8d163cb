"""When the database may answer "not modified" instead of a cart that the reader has already, as HTTP does for an ETag.

Both kinds of validator rest on one invariant, which `commands.apply_transition` keeps: an unclaimed reservation never
changes without raising its cart's revision.

| who asks | must be equal | valid until |
|---|---|---|
| GetCart | the whole reply | a row may be claimed or a hold runs out; never while a row is claimed |
| a watcher | all that raises the revision | a hold runs out |

A claim, its retries and a renewal change `attempt_count`, `next_attempt_time`, `message` and a later `expire_time`
without raising the revision. GetCart shows them; a watcher is not woken for them, so its polls stay cheap while a call
hangs.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, FromClause, case, or_

from cart_grpc.carts.model import Line
from cart_grpc.carts.progress import HOLD_MARGIN_US

# A row that somebody changes by hand raises no revision: readers see such a change after a minute at the latest.
MAX_AGE_US: Final = 60_000_000


class CacheValidator(NamedTuple):
    """A cart is not modified if it has this `version` and the database's time, in microseconds, is before `until`."""

    version: str
    until: int


# No cart has this version.
NO_VALIDATOR: Final = CacheValidator("", 0)


def reply_valid_until(reservation: FromClause) -> ColumnElement[int]:
    """SQL: until when GetCart shows a line the same if the cart's revision does not change; 0 for a claimed line.

    A due row may be claimed at any moment. A hold is shown as reserved until its lapse.
    """
    due_time, lapse = reservation.c.due_time, reservation.c.expire_time - HOLD_MARGIN_US
    return case(
        (reservation.c.lease_expire_time.is_not(None), 0),
        (or_(lapse.is_(None), due_time < lapse), due_time),
        else_=lapse,
    )


def reply_validator(version: str, first_until: int | None, now: int) -> CacheValidator | None:
    """The validator of a whole reply read at `now`, or None if the reply may change at once.

    `first_until` is the least `reply_valid_until` of the cart's lines, None if no line has one.
    """
    latest = now + MAX_AGE_US
    until = latest if first_until is None else min(first_until, latest)
    return CacheValidator(version, until) if until > now else None


def watch_validator(version: str, lines: Iterable[Line], now: int) -> CacheValidator:
    """The validator of what a watcher was shown at `now`: valid until the next hold of `lines` runs out."""
    lapses = (
        line.reservation.expire_time - HOLD_MARGIN_US for line in lines if line.reservation.expire_time is not None
    )
    return CacheValidator(version, min((lapse for lapse in lapses if lapse > now), default=now + MAX_AGE_US))
