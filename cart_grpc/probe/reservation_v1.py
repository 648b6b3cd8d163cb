"""The contract `cartgrpc.reservation.v1` for the probe."""

from typing import Final

from cart_grpc.probe.batches import BATCHES
from cart_grpc.probe.contract import Contract
from cart_grpc.probe.decisions import DECISIONS
from cart_grpc.probe.endurance import ENDURANCE
from cart_grpc.probe.formats import FORMATS
from cart_grpc.probe.refusals import REFUSALS
from cart_grpc.probe.sales import SALES

RESERVATION_V1: Final = Contract(
    name="cartgrpc.reservation.v1",
    checks=(*DECISIONS, *REFUSALS, *SALES, *ENDURANCE, *FORMATS, *BATCHES),
    consequences={
        "1": "a late or repeated message overwrites a newer decision: carts show units that are not held",
        "2": "an item that is removed while its HOLD is in flight stays reserved forever",
        "3": "an item is shown as RESERVED but not held, shown as REJECTED but held, or retried forever",
        "4": "a late message reserves stock for a cart that is gone, or undoes a sale",
        "5": "an item is shown as RESERVED after its hold expired, or renewed again and again before that",
        "6": "a message that is sent twice, as after every time-out, reserves twice",
        "7": "a very late message reserves stock that no cart needs, or a release is retried forever",
        "8": "a newer cart_grpc, or another JSON library, gets no reservation at all",
        "reads": "carts are correct, but audits are not reliable",
        "batches": "an item is shown with a decision that a single call would not get, or waits for other items",
    },
    leftover_lifetime="expires within 25 hours, all but one within 20 minutes",
    optional=frozenset({"reads", "batches"}),
)
