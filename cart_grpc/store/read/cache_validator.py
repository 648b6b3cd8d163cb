"""Validators of cached carts: with one, the database may answer "not modified", as an HTTP server does for an ETag.

Both kinds of validator rest on one invariant, which `commands.apply_transition` keeps: an unclaimed reservation never
changes without raising its cart's revision.

| reader | "not modified" means | the validator expires when |
|---|---|---|
| GetCart | the whole reply is the same | a row becomes due or a hold expires; there is none while a row is claimed |
| a watcher | the revision is the same | a hold expires |

A claim, its retries and a renewal change `attempt_count`, `next_attempt_time`, `message` and a later `expire_time`
without raising the revision. GetCart shows them; a watcher is not woken for them, so its polls stay cheap while a call
hangs.
"""

from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, FromClause, case, or_

from cart_grpc.carts.progress import HOLD_MARGIN_US

# A change by hand in the database raises no revision. Readers see it after a minute at the latest.
MAX_AGE_US: Final = 60_000_000
# Watchers see it later: reading 10,000 watched carts once a minute takes several percent of a core.
MAX_WATCH_AGE_US: Final = 600_000_000


class CacheValidator(NamedTuple):
    """A cart is not modified if it has this `version`, and the database's time is between `since` and `until`.

    `since` is the time of the read, in microseconds. An earlier time shows that the clock was set back, also to a
    process that was cut from the database meanwhile: holds end then without a new revision.
    """

    version: str
    since: int
    until: int


# No cart has this version.
NO_VALIDATOR: Final = CacheValidator("", 0, 0)


def reply_valid_until(reservation: FromClause) -> ColumnElement[int]:
    """SQL: the time until which a line looks the same in GetCart if the cart keeps its revision; 0 if it is claimed.

    A due row may be claimed at any moment. The lapse is the time from which a hold is not shown as reserved any more.
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
    return CacheValidator(version, now, until) if until > now else None


def watch_validator(version: str, next_lapse: int | None, now: int) -> CacheValidator:
    """The validator of the state that a watcher got at `now`. It expires with the next hold."""
    latest = now + MAX_WATCH_AGE_US
    return CacheValidator(version, now, latest if next_lapse is None else min(next_lapse, latest))
