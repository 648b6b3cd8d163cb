"""`cartgrpc.reservation.v1`, as the probe knows it."""

from typing import Final

from cart_grpc.probe.contract import Contract
from cart_grpc.probe.decisions import DECISIONS
from cart_grpc.probe.endurance import ENDURANCE

RESERVATION_V1: Final = Contract(
    name="cartgrpc.reservation.v1",
    checks=(*DECISIONS, *ENDURANCE),
    costs={
        "1": "a message that is late or sent twice changes what was decided since: carts show what is not held",
        "2": "an item that is removed while its HOLD is on the way stays reserved for nobody",
        "3": "an item is shown as RESERVED that is not, as REJECTED that is held, or is asked for without end",
        "4": "a late message takes stock for a cart that is gone, or undoes a sale",
        "5": "an item is shown as RESERVED when its hold is over, or held again and again before it is",
        "6": "a message that is sent twice, as after every time-out, reserves twice",
        "7": "a message that is very late reserves for nobody, or a release is tried without end",
        "reads": "nothing goes wrong in a cart, but audits cannot be believed",
    },
    lasts="for 20 minutes at most",
    spare=frozenset({"reads"}),
)
