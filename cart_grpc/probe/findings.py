"""The result of one check, and the exceptions that end a check."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """The result of a check. Only an answer can fail a check: no answer proves nothing."""

    PASSED = "passed"
    FAILED = "FAILED"
    NO_ANSWER = "no answer"
    NOT_TESTED = "not tested"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of `rule`: `test` is what the probe sent, `answer` what the API answered."""

    rule: str
    test: str
    answer: str
    verdict: Verdict


class CheckFailed(Exception):
    """The API breaks the rule. The text is its answer."""


class NotTested(Exception):
    """The check could not run. The text says why."""


class Unreachable(Exception):
    """No working Reservation API answers. The text says how the first call ended."""
