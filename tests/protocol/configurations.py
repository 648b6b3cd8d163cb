"""How much may happen in the worlds that are looked through: each a few thousand to some tens of thousands of them."""

from tests.protocol.worlds import Bounds

# A quantity that is changed, and no more: for mutants that take all worlds to be found out.
CHANGED = Bounds(changed=2)
# An item that is taken out and put in again, under a second id.
AGAIN = Bounds(changed=2, refused=1, ids=2)
# Errors that the API does not remember, over and over.
REFUSED = Bounds(changed=3, refused=4)
# Holds that are renewed, run out and are held again, while others take what becomes free.
EXPIRING = Bounds(changed=2, renewed=3, ticks=2, rivals=True)
# The same with a second id.
AGAIN_EXPIRING = Bounds(ids=2, ticks=1)
# What is sold, or refused to be sold and changed again.
SOLD = Bounds(changed=3, refused=2, commits=3)
# Sold after the hold ran out, and perhaps somebody else took the stock.
SOLD_LATE = Bounds(changed=2, renewed=2, commits=3, ticks=1, rivals=True)
# Refused to be sold, taken out, put in again.
SOLD_AGAIN = Bounds(commits=1, ids=2)
# Two items that are checked out together, all pieces of each, so that it matters who else takes one.
CHECKOUT = Bounds(items=2, quantities=(2,), commits=1, window=True, ticks=1, rivals=True)
# A backup at any time, and its restoration at any later one.
RESTORED = Bounds(changed=2, restores=True)
# The same, while what is sold may be forgotten: then an alarm is all that can be promised.
RESTORED_SOLD = Bounds(commits=1, restores=True)

# Each is looked through at every change.
SHALLOW = {
    "added again": (AGAIN, 17_000),
    "refused": (REFUSED, 14_000),
    "expiring": (EXPIRING, 11_000),
    "added again, expiring": (AGAIN_EXPIRING, 2_500),
    "sold": (SOLD, 6_000),
    "sold late": (SOLD_LATE, 6_000),
    "sold, or added again": (SOLD_AGAIN, 900),
    "two items": (CHECKOUT, 5_000),
    "restored": (RESTORED, 7_000),
    "restored, sold": (RESTORED_SOLD, 1_200),
}
DEEP = {
    "added again, sold": (Bounds(changed=2, refused=1, ids=2, commits=2), 51_000),
    "added again, expiring": (Bounds(changed=2, ids=2, ticks=1, rivals=True), 50_000),
    "refused, expiring": (Bounds(changed=3, renewed=3, refused=2, ticks=2, rivals=True), 50_000),
    "two items": (Bounds(items=2, quantities=(2,), commits=2, window=True, ticks=2, renewed=2), 50_000),
    "restored, expiring": (Bounds(changed=2, renewed=2, restores=True, ticks=1), 50_000),
}
