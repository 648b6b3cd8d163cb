"""Runs the checks: concurrently, or one after the other if they count the stock."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Generic

from cart_grpc.probe.basic import BASIC
from cart_grpc.probe.basic_session import BasicSession
from cart_grpc.probe.calls import Log, breaks_contract
from cart_grpc.probe.contract import Check, Contract, S
from cart_grpc.probe.findings import CheckFailed, Finding, NotTested, Verdict
from cart_grpc.probe.report import Report
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig, Session
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.reservation_api.credentials import NO_FILES, CredentialFiles

_MAX_CONCURRENT_CHECKS: Final = 8


class Probe(Generic[S]):
    """Runs each check of `contract` once, up to `concurrency` at a time.

    Each check gets a session of its own from `new_session`. The sessions keep their statistics in `log`.
    """

    def __init__(self, contract: Contract[S], new_session: Callable[[], S], log: Log, *, concurrency: int) -> None:
        self._contract = contract
        self._new_session = new_session
        self._log = log
        self._findings: dict[Check[S], Finding] = {}
        self._slots = asyncio.Semaphore(concurrency)

    async def run(self, stopped: asyncio.Event, *, on_reachable: Callable[[], None] = lambda: None) -> Report:
        """Run the checks, release everything, and return the report. Setting `stopped` ends the checks early.

        Calls `on_reachable` once the API has answered; the checks may then take minutes. Raises Unreachable if no
        working Reservation API answers the first call.
        """
        running, stopping = asyncio.create_task(self._run_all(on_reachable)), asyncio.create_task(stopped.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        running.cancel()
        await asyncio.wait((running, stopping))
        if not running.cancelled():
            running.result()
        checks = self._contract.checks
        interrupted = {each: Finding(each.rule, each.test, "interrupted", Verdict.NOT_TESTED) for each in checks}
        findings = [self._findings.get(each, interrupted[each]) for each in checks]
        return Report(self._contract, findings, self._log)

    async def _run_all(self, on_reachable: Callable[[], None]) -> None:
        session = self._new_session()
        try:
            await session.check_reachable()
        finally:
            await _release_all(session)
        on_reachable()
        async with asyncio.TaskGroup() as group:
            for each in self._contract.checks:
                group.create_task(self._run(each))

    async def _run(self, check: Check[S]) -> None:
        async with self._slots:
            session = self._new_session()
            try:
                self._findings[check] = await _run_check(check, session)
            finally:
                await _release_all(session)


@asynccontextmanager
async def connect(
    url: str,
    config: ProbeConfig,
    *,
    clock: Callable[[], int],
    new_id: Callable[[], str],
    files: CredentialFiles = NO_FILES,
) -> AsyncIterator[Probe[Any]]:
    """Connect a probe to the API at `url`, for the contract that the URL names.

    `clock` returns microseconds; `new_id` makes UUIDv7s. Raises ValueError and FileError as `transports.connect` does.
    """
    from cart_grpc.reservation_api.basic_api import BasicReservationApi  # noqa: PLC0415 - imports aiohttp, which is slow

    api, log = transports.connect(url, files), Log()
    # A check that counts stock would also count the units of concurrent checks.
    concurrency = 1 if config.stock is not None else _MAX_CONCURRENT_CHECKS
    try:
        if isinstance(api, BasicReservationApi):
            yield Probe(BASIC, partial(BasicSession, api, config, log, new_id), log, concurrency=concurrency)
        else:
            yield Probe(RESERVATION_V1, partial(Session, api, config, log, clock, new_id), log, concurrency=concurrency)
    finally:
        await api.close()


async def _run_check(check: Check[S], session: S) -> Finding:
    try:
        await session.prepare()
        answer, verdict = await check.run(session), Verdict.PASSED
    except CheckFailed as failure:
        answer, verdict = str(failure), Verdict.FAILED
    except NotTested as not_tested:
        answer, verdict = str(not_tested), Verdict.NOT_TESTED
    except NoAnswerError as error:
        answer, verdict = str(error), Verdict.FAILED if breaks_contract(error) else Verdict.NO_ANSWER
    return Finding(check.rule, check.test, answer, verdict)


async def _release_all(session: S) -> None:
    """Release everything, even if the probe is interrupted meanwhile."""
    release = asyncio.create_task(session.release_all())
    try:
        await asyncio.shield(release)
    finally:
        await release
