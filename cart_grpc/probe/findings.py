"""What one check of the contract found, and how a check ends early."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What became of a check. Only an answer can break a rule: no answer says nothing about it."""

    KEPT = "kept"
    BROKEN = "BROKEN"
    NO_ANSWER = "no answer"
    NOT_TESTED = "not tested"


@dataclass(frozen=True, slots=True)
class Finding:
    """`asked` of the API to see whether it keeps `rule`, which its contract names, and what came back."""

    rule: str
    asked: str
    answered: str
    verdict: Verdict


class Broken(Exception):
    """What came back breaks the rule; the text says what it was."""


class NotTested(Exception):
    """The rule could not be tried; the text says why."""


class NobodyThere(Exception):
    """Whatever is there, it is no Reservation API that works. The text says how the first call ended."""
