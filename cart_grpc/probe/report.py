"""The report of the probe, for the owners of the API: the checks, the statistics, the verdict and its consequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from cart_grpc.probe.calls import Log
from cart_grpc.probe.contract import Contract
from cart_grpc.probe.findings import Finding, Verdict
from cart_grpc.terminal import escape, to_table


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about a contract, and the statistics of the calls."""

    contract: Contract[Any]
    findings: Sequence[Finding]
    log: Log

    @property
    def passed(self) -> bool:
        """Whether every required rule passed and no reservation was left behind."""
        return not (self._rules(Verdict.FAILED) or self._unknown() or self.log.left_behind)

    def __str__(self) -> str:
        """Return the report as text."""
        order = list(self.contract.consequences).index
        findings = sorted(self.findings, key=lambda each: order(each.rule))
        results = [(each.rule, each.verdict.value, each.test, each.answer) for each in findings]
        lines = to_table([("rule", "result", "test", "answer"), *results])
        statistics = (*self._reservations(), self._calls())
        return "\n".join((*lines, "", *map(escape, statistics), "", *map(escape, self._verdict())))

    def _verdict(self) -> list[str]:
        name = self.contract.name
        if self.passed:
            return [f"{name}: PASSED: no tested rule is broken"]
        failed, unknown = self._rules(Verdict.FAILED), self._unknown()
        lines = [f"{name}: FAILED: {_name(failed)}"] if failed else []
        lines += [f"{name}: UNKNOWN: {_name(unknown)}"] if unknown else []
        lines += [f"{name}: some reservations could not be released, see above"] if self.log.left_behind else []
        return lines + [
            f"  {_name([rule])} is broken. Consequence: {self.contract.consequences[rule]}" for rule in failed
        ]

    def _rules(self, verdict: Verdict) -> list[str]:
        return list(dict.fromkeys(finding.rule for finding in self.findings if finding.verdict is verdict))

    def _unknown(self) -> list[str]:
        """Return the required rules that did not fail, but had an unanswered check or no check that passed."""
        passed, silent = self._rules(Verdict.PASSED), self._rules(Verdict.NO_ANSWER)
        rules = [rule for rule in self.contract.consequences if rule in silent or rule not in passed]
        return [
            rule for rule in rules if rule not in self._rules(Verdict.FAILED) and rule not in self.contract.optional
        ]

    def _reservations(self) -> list[str]:
        sold = f", {self.log.sold} units sold" if self.log.sold else ""
        lines = [f"reservations: {self.log.released} released, {len(self.log.left_behind)} left behind{sold}"]
        return lines + [f"  left behind, {self.contract.leftover_lifetime}: {each}" for each in self.log.left_behind]

    def _calls(self) -> str:
        latencies = sorted(self.log.latencies)
        counts = f"calls: {len(latencies)} answered, {self.log.unanswered} unanswered"
        if len(latencies) < 2:
            return counts
        cuts = quantiles(latencies, n=100, method="inclusive")
        percentiles = ", ".join(f"p{percent} {_format_time(cuts[percent - 1])}" for percent in (50, 90, 99))
        return f"{counts}; {percentiles}, slowest {_format_time(latencies[-1])}"


def _name(rules: Sequence[str]) -> str:
    """Return the rules as in `rules 1, 2 and reads`."""
    numbers, words = ([rule for rule in rules if rule.isdigit() is number] for number in (True, False))
    named = [f"rule{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"] if numbers else []
    return " and ".join([*named, *([", ".join(words)] if words else [])])


def _format_time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
