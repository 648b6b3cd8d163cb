"""The bounds of the explorations. Each has a few thousand to some tens of thousands of states."""

from tests.protocol.states import Bounds

# Only the quantity changes: for mutants that show in the settling check, after all states are explored.
CHANGED = Bounds(changed=2)
# An item is removed and added again under a second id.
AGAIN = Bounds(changed=2, refused=1, ids=2)
# Repeated permanent failures.
REFUSED = Bounds(changed=3, refused=4)
# Holds are renewed, expire and are held again, while other customers take free stock.
EXPIRING = Bounds(changed=2, renewed=3, ticks=2, rivals=True)
# The same with a second id.
AGAIN_EXPIRING = Bounds(ids=2, ticks=1)
# A commit succeeds, or fails and the item is changed again.
SOLD = Bounds(changed=3, refused=2, commits=3)
# A commit after the hold expired; another customer may have taken the stock.
SOLD_LATE = Bounds(changed=2, renewed=2, commits=3, ticks=1, rivals=True)
# A commit fails, and the item is removed and added again.
SOLD_AGAIN = Bounds(commits=1, ids=2)
# A checkout extends its hold beyond its window. The API may hold for less time, and operators intervene.
CHECKOUT = Bounds(quantities=(2,), commits=1, window=True, short=True, ticks=1, rivals=True, operators=True)
# A checkout fails, and is completed again or cancelled, also after an operator has released a reservation.
FAILED = Bounds(quantities=(2,), commits=1, ids=2, ticks=1, rivals=True, operators=True)
# Two items are checked out together.
TWO_ITEMS = Bounds(items=2, quantities=(2,), commits=1, window=True, ticks=1)
# The same, and one of them may fail.
ONE_OF_TWO = Bounds(items=2, quantities=(2,), commits=1, ids=2, ticks=1, rivals=True, callers=False)
# A backup at any time and a restore at any later time.
RESTORED = Bounds(changed=2, restores=True)
# The same with a sale that the backup does not have: then the service can only raise an alarm.
RESTORED_SOLD = Bounds(commits=1, restores=True)

# Explored in every test run. The number is a lower bound of the states: fewer mean a lost transition.
SHALLOW = {
    "added again": (Bounds(refused=1, ids=2), 2_600),
    "refused": (Bounds(changed=2, refused=3), 2_200),
    "expiring": (Bounds(changed=2, renewed=2, ticks=2, rivals=True), 6_700),
    "added again, expiring": (AGAIN_EXPIRING, 2_500),
    "sold": (SOLD, 3_000),
    "sold late": (SOLD_LATE, 3_500),
    "sold, or added again": (SOLD_AGAIN, 500),
    "checkout": (CHECKOUT, 2_000),
    "failed": (FAILED, 4_500),
    "two items": (TWO_ITEMS, 9_500),
    "restored": (RESTORED, 7_000),
    "restored, sold": (RESTORED_SOLD, 800),
}
DEEP = {
    "changed, added again": (AGAIN, 17_000),
    "refused more often": (REFUSED, 14_000),
    "expiring more often": (EXPIRING, 11_000),
    "added again, sold": (Bounds(changed=2, refused=1, ids=2, commits=2), 51_000),
    "added again, expiring": (Bounds(changed=2, ids=2, ticks=1, rivals=True), 50_000),
    "refused, expiring": (Bounds(changed=3, renewed=3, refused=2, ticks=2, rivals=True), 50_000),
    "two items": (Bounds(items=2, quantities=(2,), commits=1, window=True, ticks=1, rivals=True), 50_000),
    "two items, held too short": (
        Bounds(items=2, quantities=(2,), commits=1, window=True, ticks=1, short=True),
        50_000,
    ),
    "restored, expiring": (Bounds(changed=2, renewed=2, restores=True, ticks=1), 50_000),
}
