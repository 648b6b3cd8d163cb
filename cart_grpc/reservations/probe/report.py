"""What the probe found, for the people who own the API: a table, a verdict, and what each broken rule would cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Final

from cart_grpc.reservations.probe.findings import Finding, Verdict
from cart_grpc.reservations.probe.session import Log

_COSTS: Final = {
    "1": "a message that is late or sent twice changes what was decided since: carts show what is not held",
    "2": "an item that is removed while its HOLD is on the way stays reserved for nobody",
    "3": "an item is shown as RESERVED that is not, as REJECTED that is held, or is asked for without end",
    "4": "a late message takes stock for a cart that is gone, or undoes a sale",
    "5": "an item is shown as RESERVED when its hold is over, or held again and again before it is",
    "6": "a message that is sent twice, as after every time-out, reserves twice",
    "7": "a message that is very late reserves for nobody, or a release is tried without end",
    "reads": "nothing goes wrong in a cart, but audits cannot be believed",
}


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order of the rules, and what they took."""

    findings: Sequence[Finding]
    log: Log

    @property
    def kept(self) -> bool:
        """Whether every rule was seen to be kept and nothing was left behind."""
        return not (self._rules(Verdict.BROKEN) or self._unknown() or self.log.stuck)

    def __str__(self) -> str:
        """Return the table, the verdict and the figures."""
        found = [(each.rule, each.verdict.value, each.asked, each.answered) for each in self.findings]
        rows = [("rule", "", "asked", "came back"), *found]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in (*lines, "", *self._left(), self._latency(), "", *self._verdict()))

    def _verdict(self) -> list[str]:
        if self.kept:
            return ["reservation.v1: kept, as far as it was tested"]
        broken, unknown = self._rules(Verdict.BROKEN), self._unknown()
        lines = [f"reservation.v1: not kept: {_name(broken)}"] if broken else []
        lines += [f"reservation.v1: not known: {_name(unknown)}"] if unknown else []
        lines += ["reservation.v1: not everything could be released, see above"] if self.log.stuck else []
        return lines + [f"  {_name([rule])} not kept: {_COSTS[rule]}" for rule in broken]

    def _rules(self, verdict: Verdict) -> list[str]:
        return list(dict.fromkeys(finding.rule for finding in self.findings if finding.verdict is verdict))

    def _unknown(self) -> list[str]:
        """The rules that got no answer, or of which nothing could be tested. Reads are left out: carts need none."""
        kept, silent = self._rules(Verdict.KEPT), self._rules(Verdict.NO_ANSWER)
        rules = [rule for rule in _COSTS if rule != "reads" and (rule in silent or rule not in kept)]
        return [rule for rule in rules if rule not in self._rules(Verdict.BROKEN)]

    def _left(self) -> list[str]:
        sold = f", {self.log.sold} pieces sold" if self.log.sold else ""
        lines = [f"reservations: {self.log.released} released, {len(self.log.stuck)} left behind{sold}"]
        return lines + [f"  left behind, for 20 minutes at most: {each}" for each in self.log.stuck]

    def _latency(self) -> str:
        latencies = sorted(self.log.latencies)
        lost = f"calls: {len(latencies)} answered, {self.log.unanswered} not"
        if len(latencies) < 2:
            return lost
        cuts = quantiles(latencies, n=100, method="inclusive")
        shown = ", ".join(f"{name} {_time(cuts[cut - 1])}" for name, cut in (("p50", 50), ("p90", 90), ("p99", 99)))
        return f"{lost}; {shown}, slowest {_time(latencies[-1])}"


def _name(rules: Sequence[str]) -> str:
    numbers = [rule for rule in rules if rule != "reads"]
    named = [f"rule{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"] if numbers else []
    return " and ".join([*named, *(rule for rule in rules if rule == "reads")])


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
