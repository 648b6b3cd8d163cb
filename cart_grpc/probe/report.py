"""What the probe found, for the people who own the API: a table, a verdict, and what each broken rule would cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from cart_grpc.probe.calls import Log
from cart_grpc.probe.contract import Contract
from cart_grpc.probe.findings import Finding, Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about a contract, and what they took."""

    contract: Contract[Any]
    findings: Sequence[Finding]
    log: Log

    @property
    def kept(self) -> bool:
        """Whether every rule was seen to be kept and nothing was left behind."""
        return not (self._rules(Verdict.BROKEN) or self._unknown() or self.log.stuck)

    def __str__(self) -> str:
        """Return the table, the verdict and the figures."""
        order = list(self.contract.costs).index
        findings = sorted(self.findings, key=lambda each: order(each.rule))
        found = [(each.rule, each.verdict.value, each.asked, each.answered) for each in findings]
        rows = [("rule", "", "asked", "came back"), *found]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in (*lines, "", *self._left(), self._latency(), "", *self._verdict()))

    def _verdict(self) -> list[str]:
        name = self.contract.name
        if self.kept:
            return [f"{name}: kept, as far as it was tested"]
        broken, unknown = self._rules(Verdict.BROKEN), self._unknown()
        lines = [f"{name}: not kept: {_name(broken)}"] if broken else []
        lines += [f"{name}: not known: {_name(unknown)}"] if unknown else []
        lines += [f"{name}: not everything could be released, see above"] if self.log.stuck else []
        return lines + [f"  {_name([rule])} not kept: {self.contract.costs[rule]}" for rule in broken]

    def _rules(self, verdict: Verdict) -> list[str]:
        return list(dict.fromkeys(finding.rule for finding in self.findings if finding.verdict is verdict))

    def _unknown(self) -> list[str]:
        """The rules that got no answer, or of which nothing could be tested, but should have been."""
        kept, silent = self._rules(Verdict.KEPT), self._rules(Verdict.NO_ANSWER)
        rules = [rule for rule in self.contract.costs if rule in silent or rule not in kept]
        return [rule for rule in rules if rule not in self._rules(Verdict.BROKEN) and rule not in self.contract.spare]

    def _left(self) -> list[str]:
        sold = f", {self.log.sold} pieces sold" if self.log.sold else ""
        lines = [f"reservations: {self.log.released} released, {len(self.log.stuck)} left behind{sold}"]
        return lines + [f"  left behind, {self.contract.lasts}: {each}" for each in self.log.stuck]

    def _latency(self) -> str:
        latencies = sorted(self.log.latencies)
        lost = f"calls: {len(latencies)} answered, {self.log.unanswered} not"
        if len(latencies) < 2:
            return lost
        cuts = quantiles(latencies, n=100, method="inclusive")
        shown = ", ".join(f"{name} {_time(cuts[cut - 1])}" for name, cut in (("p50", 50), ("p90", 90), ("p99", 99)))
        return f"{lost}; {shown}, slowest {_time(latencies[-1])}"


def _name(rules: Sequence[str]) -> str:
    numbers, words = ([rule for rule in rules if rule.isdigit() is number] for number in (True, False))
    named = [f"rule{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"] if numbers else []
    return " and ".join([*named, *([", ".join(words)] if words else [])])


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
