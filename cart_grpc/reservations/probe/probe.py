"""Running the checks: several at once where nothing is counted, one after the other where it is."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from cart_grpc.reservations.api import AuditableApi, NoAnswer
from cart_grpc.reservations.probe.check import Check
from cart_grpc.reservations.probe.decisions import DECISIONS
from cart_grpc.reservations.probe.endurance import ENDURANCE
from cart_grpc.reservations.probe.findings import Broken, Finding, NotTested, Verdict
from cart_grpc.reservations.probe.session import Log, ProbeConfig, Session, breaks_contract

CHECKS: Final = (*DECISIONS, *ENDURANCE)

_AT_ONCE: Final = 8


class NobodyThere(Exception):
    """Whatever is there, it is no Reservation API that works. The text says how the first call ended."""


class Probe:
    """Asks `api` everything there is to ask, once. `clock` tells microseconds, `new_id` makes UUIDv7s."""

    def __init__(
        self, api: AuditableApi, config: ProbeConfig, *, clock: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        self.log = Log()
        self._findings: dict[Check, Finding] = {}
        self._new_session = partial(Session, api, config, self.log, clock, new_id)
        # Whoever else held pieces of the sku would be counted.
        self._turns = asyncio.Semaphore(1 if config.stock is not None else _AT_ONCE)

    async def run(self, stopped: asyncio.Event, *, greeted: Callable[[], None] = lambda: None) -> list[Finding]:
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
        cut = {each: Finding(each.rule, each.asked, "interrupted", Verdict.NOT_TESTED) for each in CHECKS}
        return [self._findings.get(each, cut[each]) for each in CHECKS]

    async def _ask_all(self, greeted: Callable[[], None]) -> None:
        await self._greet()
        greeted()
        async with asyncio.TaskGroup() as group:
            for each in CHECKS:
                group.create_task(self._find(each))

    async def _greet(self) -> None:
        session = self._new_session()
        try:
            await session.ask(session.hold(1))
        except NoAnswer as error:
            if error.code == "DEADLINE_EXCEEDED" or (error.reached and not await _is_web_server(error, session)):
                return
            raise NobodyThere(str(error)) from None
        finally:
            await _end(session)

    async def _find(self, check: Check) -> None:
        async with self._turns:
            session = self._new_session()
            try:
                self._findings[check] = await _ask(check, session)
            finally:
                await _end(session)


async def _end(session: Session) -> None:
    """Give everything back, even where the probe is ended while that is going on."""
    ending = asyncio.create_task(session.end())
    try:
        await asyncio.shield(ending)
    finally:
        await ending


async def _ask(check: Check, session: Session) -> Finding:
    try:
        await session.begin()
        answered, verdict = await check.ask(session), Verdict.KEPT
    except Broken as broken:
        answered, verdict = str(broken), Verdict.BROKEN
    except NotTested as not_tested:
        answered, verdict = str(not_tested), Verdict.NOT_TESTED
    except NoAnswer as error:
        answered, verdict = str(error), Verdict.BROKEN if breaks_contract(error) else Verdict.NO_ANSWER
    return Finding(check.rule, check.asked, answered, verdict)


async def _is_web_server(error: NoAnswer, session: Session) -> bool:
    """Whether what answered nonsense has nothing to be read either: the address or the path is wrong."""
    if not breaks_contract(error):
        return False
    try:
        await session.find(session.new_id())
    except NoAnswer:
        return True
    return False
