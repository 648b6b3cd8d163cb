"""Whatever a Reservation API answers, it becomes one of few labels."""

import pytest

from cart_grpc.background.outcomes import Outcome, label_of
from cart_grpc.protocol.reservation import Decision, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import NoAnswerError

HELD = Decision("r1", 1, Observed.HELD, 2, None, "")


@pytest.mark.parametrize(
    ("outcome", "label"),
    [
        (HELD, "HELD"),
        (PermanentFailure("REASON_OF_ITS_OWN_731", "text"), "PERMANENT_FAILURE"),
        (StaleRevision(HELD), "STALE_REVISION"),
        (NoAnswerError("UNAVAILABLE", "text"), "UNAVAILABLE"),
        (NoAnswerError("INVALID_ANSWER", "text"), "INVALID_ANSWER"),
        (NoAnswerError("HTTP_503", "text"), "HTTP_503"),
        (NoAnswerError("HTTP_799", "text"), "OTHER"),
        (NoAnswerError("REASON_OF_ITS_OWN_731", "text"), "OTHER"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_outcome_has_one_of_few_labels(outcome: Outcome, label: str) -> None:
    assert label_of(outcome) == label
