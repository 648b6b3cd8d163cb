"""Running the checks: several at once where nothing is counted, one after the other where it is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Generic

from cart_grpc.probe.basic import BASIC
from cart_grpc.probe.basic_session import BasicSession
from cart_grpc.probe.calls import Log, breaks_contract
from cart_grpc.probe.contract import Check, Contract, S
from cart_grpc.probe.findings import Broken, Finding, NotTested, Verdict
from cart_grpc.probe.report import Report
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig, Session
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import NoAnswerError

_AT_ONCE: Final = 8


class Probe(Generic[S]):
    """Asks everything there is to ask about `contract`, once, `at_once` checks at a time.

    `new_session` is called for each check; sessions note in `log` what they go through.
    """

    def __init__(self, contract: Contract[S], new_session: Callable[[], S], log: Log, *, at_once: int) -> None:
        self._contract = contract
        self._new_session = new_session
        self._log = log
        self._findings: dict[Check[S], Finding] = {}
        self._turns = asyncio.Semaphore(at_once)

    async def run(self, stopped: asyncio.Event, *, greeted: Callable[[], None] = lambda: None) -> Report:
        """Return a finding for each check, and leave nothing reserved, even where `stopped` is set before the end.

        `greeted` is called when it is known that somebody is there: from then on it may take long.
        Raises NobodyThere if the very first call fails in a way that only a server which does not work fails in.
        """
        asking, stopping = asyncio.create_task(self._ask_all(greeted)), asyncio.create_task(stopped.wait())
        await asyncio.wait((asking, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        asking.cancel()
        await asyncio.wait((asking, stopping))
        if not asking.cancelled():
            asking.result()
        checks = self._contract.checks
        cut = {each: Finding(each.rule, each.asked, "interrupted", Verdict.NOT_TESTED) for each in checks}
        return Report(self._contract, [self._findings.get(each, cut[each]) for each in checks], self._log)

    async def _ask_all(self, greeted: Callable[[], None]) -> None:
        session = self._new_session()
        try:
            await session.greet()
        finally:
            await _end(session)
        greeted()
        async with asyncio.TaskGroup() as group:
            for each in self._contract.checks:
                group.create_task(self._find(each))

    async def _find(self, check: Check[S]) -> None:
        async with self._turns:
            session = self._new_session()
            try:
                self._findings[check] = await _ask(check, session)
            finally:
                await _end(session)


@asynccontextmanager
async def connect(
    url: str, config: ProbeConfig, *, clock: Callable[[], int], new_id: Callable[[], str]
) -> AsyncIterator[Probe[Any]]:
    """Connect to the API at `url` with a probe of the contract that the URL names.

    `clock` tells microseconds, `new_id` makes UUIDv7s. Raises ValueError as `transports.connect` does.
    """
    from cart_grpc.reservation_api.basic_api import BasicReservationApi  # noqa: PLC0415 - it loads aiohttp

    api, log = transports.connect(url), Log()
    # Whoever else held pieces of the sku would be counted.
    at_once = 1 if config.stock is not None else _AT_ONCE
    try:
        if isinstance(api, BasicReservationApi):
            yield Probe(BASIC, partial(BasicSession, api, config, log, new_id), log, at_once=at_once)
        else:
            yield Probe(RESERVATION_V1, partial(Session, api, config, log, clock, new_id), log, at_once=at_once)
    finally:
        await api.close()


async def _ask(check: Check[S], session: S) -> Finding:
    try:
        await session.begin()
        answered, verdict = await check.ask(session), Verdict.KEPT
    except Broken as broken:
        answered, verdict = str(broken), Verdict.BROKEN
    except NotTested as not_tested:
        answered, verdict = str(not_tested), Verdict.NOT_TESTED
    except NoAnswerError as error:
        answered, verdict = str(error), Verdict.BROKEN if breaks_contract(error) else Verdict.NO_ANSWER
    return Finding(check.rule, check.asked, answered, verdict)


async def _end(session: S) -> None:
    """Give everything back, even where the probe is ended while that is going on."""
    ending = asyncio.create_task(session.end())
    try:
        await asyncio.shield(ending)
    finally:
        await ending
