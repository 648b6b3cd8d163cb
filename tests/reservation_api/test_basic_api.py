"""The client of the `basic` contract, against the simulator and against invalid answers."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed
from cart_grpc.reservation_api.api import UNRECORDED, NoAnswerError, PermanentFailure, ReservationApi
from cart_grpc.reservation_api.basic_api import BasicReservationApi
from cart_grpc.reservation_api.http_client import HttpAnswer, HttpClient
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.intents import SECOND, after, hold

SKU = "espresso-beans"


@dataclass
class RecordingAttempt:
    """An attempt that records its use: `opened` has the timeouts, `held_before` the stock held at each `open`."""

    simulator: Simulator | None = None
    uncertain_us: int = 0
    allowed: bool = True
    opened: list[int] = field(default_factory=list)
    held_before: list[int] = field(default_factory=list)

    async def open(self, timeout_us: int) -> bool:
        """See Attempt.open."""
        self.opened.append(timeout_us)
        if self.simulator:
            self.held_before.append(self.simulator.levels(SKU).held)
        return self.allowed


@pytest.fixture
def transport() -> str:
    return "http"


@pytest.fixture
async def simulator_url(simulator: Simulator) -> AsyncIterator[str]:
    server = SimulatorServer(simulator)
    ports = await server.start(None, "127.0.0.1:0")
    yield f"basic+http://127.0.0.1:{ports.http}/basic"
    await server.stop(0)


def live(simulator: Simulator, intent: Intent) -> list[tuple[str, int]]:
    """Return the reservation id and quantity of every live reservation of the intent's id."""
    now = simulator._clock()
    found = simulator._stock.find_live(intent.reservation_id, now)
    return [(record.intent.reservation_id, record.granted) for record in found]


async def posted(simulator: Simulator, intent: Intent, *quantities: int) -> None:
    """Reserve for the intent's id, as a late request of an earlier attempt would."""
    for quantity in quantities:
        await simulator.reserve(lambda quantity=quantity: (intent.reservation_id, SKU, quantity))  # type: ignore[misc]


async def no_answer(
    api: ReservationApi, intent: Intent, attempt: RecordingAttempt | None = None, *, timeout: float = 5
) -> NoAnswerError:
    with pytest.raises(NoAnswerError) as caught:
        await api.apply(intent, timeout=timeout, attempt=attempt or UNRECORDED)
    return caught.value


def decided(intent: Intent, state: Observed, granted: int = 0, live_count: int = 0) -> Decision:
    return Decision(intent.reservation_id, intent.revision, state, granted, None, "", live_count)


async def test_a_hold_is_posted_once_and_never_expires(api: ReservationApi, simulator: Simulator) -> None:
    intent, attempt = hold(3), RecordingAttempt(simulator)
    assert await api.apply(intent, timeout=5, attempt=attempt) == decided(intent, Observed.HELD, 3)
    assert live(simulator, intent) == [("1", 3)]
    assert attempt.held_before == [0]
    assert 4 * SECOND < attempt.opened[0] <= 5 * SECOND


async def test_a_matching_reservation_is_adopted_without_opening_an_attempt(
    api: ReservationApi, simulator: Simulator
) -> None:
    intent, attempt = hold(3), RecordingAttempt()
    await posted(simulator, intent, 3)
    assert await api.apply(intent, timeout=5, attempt=attempt) == decided(intent, Observed.HELD, 3, live_count=1)
    assert (attempt.opened, len(live(simulator, intent))) == ([], 1)


async def test_the_lowest_of_several_duplicates_is_kept_and_the_others_are_deleted(
    api: ReservationApi, simulator: Simulator
) -> None:
    intent, attempt = hold(1), RecordingAttempt(simulator)
    simulator.set_stock(SKU, 100)
    await posted(simulator, hold(), *[1] * 7)
    await posted(simulator, intent, 2, 1, 1)
    assert live(simulator, intent) == [("8", 2), ("9", 1), ("10", 1)]
    assert await api.apply(intent, timeout=5, attempt=attempt) == decided(intent, Observed.HELD, 1, live_count=3)
    assert live(simulator, intent) == [("9", 1)]
    # A late DELETE could delete a reservation adopted meanwhile, so the attempt must be open before the first DELETE.
    assert attempt.held_before == [7 + 4]


async def test_a_reservation_of_another_quantity_is_deleted_before_the_new_post(
    api: ReservationApi, simulator: Simulator
) -> None:
    intent = hold(6)
    await posted(simulator, intent, 5)
    # The stock of ten is too small for both.
    assert await api.apply(intent, timeout=5) == decided(intent, Observed.HELD, 6, live_count=1)
    assert live(simulator, intent) == [("2", 6)]


@pytest.mark.parametrize("disposition", [Disposition.HOLD, Disposition.COMMIT])
async def test_a_hold_sends_nothing_while_an_earlier_attempt_may_take_effect(
    api: ReservationApi, simulator: Simulator, disposition: Disposition
) -> None:
    error = await no_answer(api, hold(2, disposition=disposition), RecordingAttempt(uncertain_us=SECOND))
    assert (error.code, error.reached) == ("UNCERTAIN", None)
    assert simulator.call_count == 0


@pytest.mark.parametrize("before", [[], [5], [2, 2]])
async def test_a_hold_whose_attempt_cannot_be_opened_changes_nothing(
    api: ReservationApi, simulator: Simulator, before: list[int]
) -> None:
    intent = hold(2)
    await posted(simulator, intent, *before)
    error = await no_answer(api, intent, RecordingAttempt(allowed=False))
    assert (error.code, error.reached) == ("ABORTED", True)
    assert [quantity for _, quantity in live(simulator, intent)] == before


async def test_a_refused_post_is_an_answer_and_reserves_nothing(api: ReservationApi, simulator: Simulator) -> None:
    intent = hold(11)
    assert await api.apply(intent, timeout=5) == PermanentFailure("OUT_OF_STOCK", "nothing was reserved")
    assert live(simulator, intent) == []


async def test_a_commit_keeps_the_hold_or_is_rejected(api: ReservationApi, simulator: Simulator) -> None:
    first = hold(2)
    await api.apply(first, timeout=5)
    commit = after(first, Disposition.COMMIT)
    assert await api.apply(commit, timeout=5) == decided(commit, Observed.COMMITTED, 2, live_count=1)
    lost = hold(11, disposition=Disposition.COMMIT)
    answer = await api.apply(lost, timeout=5)
    assert answer == Decision(lost.reservation_id, 1, Observed.REJECTED, 0, None, "OUT_OF_STOCK")


@pytest.mark.parametrize("before", [[], [2], [2, 2, 3]])
async def test_a_release_deletes_every_live_reservation(
    api: ReservationApi, simulator: Simulator, before: list[int]
) -> None:
    intent, attempt = hold(2, disposition=Disposition.RELEASE), RecordingAttempt()
    await posted(simulator, intent, *before)
    assert await api.apply(intent, timeout=5, attempt=attempt) == decided(
        intent, Observed.RELEASED, live_count=len(before)
    )
    assert (live(simulator, intent), attempt.opened) == ([], [])


async def test_a_release_deletes_but_is_not_done_while_an_earlier_attempt_may_take_effect(
    api: ReservationApi, simulator: Simulator
) -> None:
    intent = hold(2, disposition=Disposition.RELEASE)
    await posted(simulator, intent, 2)
    error = await no_answer(api, intent, RecordingAttempt(uncertain_us=SECOND))
    assert (error.code, error.reached) == ("UNCERTAIN", True)
    assert live(simulator, intent) == []


@pytest.mark.parametrize(
    ("faults", "taken"), [(Faults(lost_before_effect=1), 0), (Faults(lost_after_effect=1), 1)], ids=["before", "after"]
)
async def test_a_lost_post_is_no_answer_and_is_not_repeated(
    api: ReservationApi, simulator: Simulator, faults: Faults, taken: int
) -> None:
    intent = hold(1)

    class Losing(RecordingAttempt):
        async def open(self, timeout_us: int) -> bool:
            simulator.faults = faults
            return True

    error = await no_answer(api, intent, Losing())
    assert (error.code, error.reached) == ("HTTP_503", False)
    assert (simulator.call_count, len(live(simulator, intent))) == (2, taken)


async def test_a_duplicated_post_reserves_twice(api: ReservationApi, simulator: Simulator, gate: Gate) -> None:
    intent = hold(1)
    await posted(simulator, intent, 1)
    simulator.faults = Faults(duplicated=1)
    await simulator.reserve(lambda: (intent.reservation_id, SKU, 1))
    gate.open()
    assert await simulator.settle(10)
    assert len(live(simulator, intent)) == 3


class Counting(HttpClient):
    """A client that records the methods it sends."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 0)
        self.sent: list[str] = []

    async def call(self, method: str, url: str, body: object = None, **options: Any) -> HttpAnswer:
        self.sent.append(method)
        return await super().call(method, url, body, **options)


async def test_a_process_suspended_past_its_deadline_sends_nothing(simulator_url: str) -> None:
    class Pausing(RecordingAttempt):
        async def open(self, timeout_us: int) -> bool:
            # Blocks the event loop, as SIGSTOP would.
            time.sleep(1.1)  # noqa: ASYNC251
            return True

    client = Counting()
    api = BasicReservationApi(simulator_url.removeprefix("basic+"), client)
    assert (await no_answer(api, hold(1), Pausing(), timeout=1)).code == "DEADLINE_EXCEEDED"
    assert client.sent == ["GET"]
    await api.close()


async def test_all_http_calls_of_one_apply_share_its_deadline(api: ReservationApi, simulator: Simulator) -> None:
    simulator.faults = Faults(latency_us=SECOND)
    assert (await no_answer(api, hold(1), timeout=0.05)).code == "DEADLINE_EXCEEDED"


@dataclass
class Scripted:
    """A server that answers each method with a scripted status and body.

    Listed reservations get the requested id, unless the script gives them another.
    """

    answers: dict[str, tuple[int, object]] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    content_type: str = "application/json"
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one call."""
        self.received.append(f"{request.method} {request.raw_path}")
        status, body = self.answers[request.method]
        if request.method == "GET" and isinstance(body, list):
            body = [{"id": request.query["id"], **each} if isinstance(each, dict) else each for each in body]
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=raw, content_type=self.content_type)


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    script = Scripted({"GET": (200, []), "POST": (201, {"reservation_id": 7}), "DELETE": (204, b"")})
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    script.url = f"basic+http://127.0.0.1:{runner.addresses[0][1]}/shop/reservations"
    yield script
    await runner.cleanup()


@pytest.fixture
async def scripted_api(scripted: Scripted) -> AsyncIterator[ReservationApi]:
    client = connect(scripted.url)
    yield client
    await client.close()


NOT_A_LIST: list[object] = [
    b"<html>",
    {},
    None,
    [3],
    [{}],
    [{"reservation_id": 1}],
    [{"reservation_id": 1, "quantity": "2"}],
    [{"reservation_id": 1, "quantity": True}],
    [{"reservation_id": None, "quantity": 2}],
    [{"reservation_id": "", "quantity": 2}],
    [{"reservation_id": "..", "quantity": 2}],
    [{"reservation_id": "x" * 1001, "quantity": 2}],
    [{"reservation_id": "\ud800", "quantity": 2}],
    [{"reservation_id": "a\u202eb", "quantity": 2}],
    [{"reservation_id": "a\nb", "quantity": 2}],
    [{"reservation_id": 1, "quantity": 2, "id": "somebody else's"}],
    [{"reservation_id": 1, "quantity": 2, "id": None}],
    [{"reservation_id": 1, "quantity": 2, "item": "tea"}],
]


@pytest.mark.parametrize("disposition", [Disposition.HOLD, Disposition.RELEASE])
@pytest.mark.parametrize("body", NOT_A_LIST, ids=ascii)
async def test_after_an_invalid_look_up_nothing_is_sent(
    scripted: Scripted, scripted_api: ReservationApi, disposition: Disposition, body: object
) -> None:
    scripted.answers["GET"] = (200, body)
    error = await no_answer(scripted_api, hold(disposition=disposition))
    assert (error.code, error.reached) == ("INVALID_ANSWER", True)
    assert [call.partition(" ")[0] for call in scripted.received] == ["GET"]


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 409, 429, 500, 503])
async def test_a_look_up_needs_status_200(scripted: Scripted, scripted_api: ReservationApi, status: int) -> None:
    scripted.answers["GET"] = (status, {"error": {"reason": "NOT_FOUND"}})
    await no_answer(scripted_api, hold(disposition=Disposition.RELEASE))
    await no_answer(scripted_api, hold())
    assert not any(call.startswith("POST") for call in scripted.received)


@pytest.mark.parametrize("status", [202, 204, 401, 403, 429, 500, 502, 503, 504])
async def test_a_post_that_neither_succeeded_nor_was_refused_is_no_answer(
    scripted: Scripted, scripted_api: ReservationApi, status: int
) -> None:
    scripted.answers["POST"] = (status, {"reservation_id": 7})
    await no_answer(scripted_api, hold(), RecordingAttempt())
    assert len(scripted.received) == 2


NO_ID = [b"", b"<html>", [], {}, {"reservation_id": None}, {"reservation_id": True}, {"reservation_id": "\udfff"}]


@pytest.mark.parametrize("body", NO_ID, ids=ascii)
async def test_a_post_without_a_reservation_id_in_its_answer_is_no_answer(
    scripted: Scripted, scripted_api: ReservationApi, body: object
) -> None:
    scripted.answers["POST"] = (201, body)
    assert (await no_answer(scripted_api, hold())).code == "INVALID_ANSWER"


async def test_the_page_of_another_web_server_is_no_refusal(scripted: Scripted, scripted_api: ReservationApi) -> None:
    scripted.answers["POST"] = (404, {"detail": "Not Found"})
    assert (await no_answer(scripted_api, hold())).code == "INVALID_ANSWER"
    scripted.answers["POST"] = (404, {"error": {"reason": "no such item"}})
    assert await scripted_api.apply(hold(), timeout=5) == PermanentFailure("NO_SUCH_ITEM", "")


async def test_ids_in_paths_are_quoted(scripted: Scripted, scripted_api: ReservationApi) -> None:
    scripted.answers["GET"] = (200, [{"reservation_id": "a/../b?c", "quantity": 2}])
    await no_answer(scripted_api, hold(disposition=Disposition.RELEASE))
    assert scripted.received[1] == "DELETE /shop/reservations/a%2F..%2Fb%3Fc"


async def test_a_release_is_not_done_while_a_deleted_reservation_is_still_listed(
    scripted: Scripted, scripted_api: ReservationApi
) -> None:
    scripted.answers["GET"] = (200, [{"reservation_id": 1, "quantity": 2}])
    assert (await no_answer(scripted_api, hold(disposition=Disposition.RELEASE))).code == "INVALID_ANSWER"
    assert [call.partition(" ")[0] for call in scripted.received] == ["GET", "DELETE", "GET"]


@pytest.mark.parametrize(("status", "answered"), [(409, True), (401, False), (403, False), (500, False)])
async def test_a_release_whose_delete_fails_is_not_done(
    scripted: Scripted, scripted_api: ReservationApi, status: int, answered: bool
) -> None:
    scripted.answers["GET"] = (200, [{"reservation_id": 1, "quantity": 2}])
    scripted.answers["DELETE"] = (status, {"error": {"reason": "SOLD"}})
    release = hold(disposition=Disposition.RELEASE)
    if answered:
        assert await scripted_api.apply(release, timeout=5) == PermanentFailure("SOLD", "")
    else:
        await no_answer(scripted_api, release)
    # The POST must not be sent before the old reservation is known to be gone.
    await no_answer(scripted_api, hold(5))
    assert not any(call.startswith("POST") for call in scripted.received)


async def test_a_delete_of_a_missing_reservation_counts_as_deleted(
    scripted: Scripted, scripted_api: ReservationApi
) -> None:
    scripted.answers["GET"] = (200, [{"reservation_id": 1, "quantity": 2}])
    scripted.answers["DELETE"] = (404, {"error": {}})
    intent = hold(5)
    assert await scripted_api.apply(intent, timeout=5) == decided(intent, Observed.HELD, 5, live_count=1)
