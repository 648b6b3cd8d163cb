"""The calls that the client repeats, when, and with which deadline; and the exceptions for the server's errors."""

import time
from collections.abc import Iterator

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc import StatusCode

from cart_grpc.client import AsyncCart, CartClient, CartError, DeadlineExceeded, Unavailable
from tests.client.scripted import Scripted, added, refusal, scripted_server, with_details
from tests.deadlines import growing

REPEATED = [
    refusal(StatusCode.UNAVAILABLE),
    refusal(StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
    refusal(StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN", retry_after=0.1),
    refusal(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.1),
    refusal(StatusCode.DEADLINE_EXCEEDED, "CALL_TIMEOUT"),
    refusal(StatusCode.CANCELLED),
]
FINAL = [
    refusal(StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED"),
    refusal(StatusCode.RESOURCE_EXHAUSTED),
    refusal(StatusCode.ABORTED, "ETAG_MISMATCH"),
    refusal(StatusCode.FAILED_PRECONDITION, "CART_CLOSED"),
    refusal(StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    refusal(StatusCode.INTERNAL, "INTERNAL"),
    refusal(StatusCode.DATA_LOSS, "DATABASE_DAMAGED"),
    refusal(StatusCode.PERMISSION_DENIED, "NOT_YOURS"),
]


@pytest.mark.parametrize("status", REPEATED)
async def test_a_call_is_repeated_with_its_request_id(
    status: grpc.Status, scripted: Scripted, scripted_cart: AsyncCart
) -> None:
    scripted.script = [status, status, added()]
    assert (await scripted_cart.add("beans")).item.quantity == 1
    first, second, third = scripted.attempts
    assert first.request.request_id
    assert first.request == second.request == third.request


@pytest.mark.parametrize("status", FINAL)
async def test_an_answer_is_not_asked_for_again(
    status: grpc.Status, scripted: Scripted, scripted_cart: AsyncCart
) -> None:
    scripted.script = [status, added()]
    with pytest.raises(CartError) as refused:
        await scripted_cart.add("beans")
    assert refused.value.code is status.code
    assert refused.value.request_id == scripted.attempts[0].request.request_id
    assert len(scripted.attempts) == 1


async def test_the_client_waits_as_long_as_the_server_asks(scripted: Scripted, scripted_cart: AsyncCart) -> None:
    scripted.script = [refusal(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.6), added()]
    await scripted_cart.add("beans")
    assert scripted.attempts[1].time - scripted.attempts[0].time >= 0.6


async def test_a_wait_beyond_the_deadline_is_left_to_the_caller(scripted: Scripted, scripted_cart: AsyncCart) -> None:
    scripted.script = [refusal(StatusCode.RESOURCE_EXHAUSTED, "DATABASE_FULL", retry_after=10)]
    began = time.monotonic()
    with pytest.raises(CartError) as refused:
        await scripted_cart.add("beans")
    assert time.monotonic() - began < 1
    assert refused.value.retry_after == 10


def check_unavailable(ended: CartError) -> Unavailable:
    """The failure that a call met again and again. At the deadline, its last attempt may have had no time left."""
    failure = ended.__cause__ if isinstance(ended, DeadlineExceeded) else ended
    assert isinstance(failure, Unavailable), repr(ended)
    return failure


async def test_all_attempts_together_end_at_the_deadline() -> None:
    deadlines = growing(0.7)
    while True:
        seconds = next(deadlines)
        with scripted_server() as scripted:
            scripted.script = [refusal(StatusCode.UNAVAILABLE) for _ in range(1_000)]
            async with CartClient(scripted.address, timeout=seconds) as client:
                began = time.monotonic()
                with pytest.raises((Unavailable, DeadlineExceeded)) as ended:
                    await client.cart("alice").add("beans")
                took = time.monotonic() - began
        if len(scripted.attempts) >= 3:
            break
    assert 0.15 < took < seconds + 0.5
    check_unavailable(ended.value)
    # With backoff, or it would be hundreds.
    assert len(scripted.attempts) <= 30


async def test_the_error_of_an_attempt_without_time_has_the_failure_before_it_as_its_cause() -> None:
    deadlines = growing(0.7)
    while True:
        seconds = next(deadlines)
        with scripted_server() as scripted:
            scripted.script = [refusal(StatusCode.UNAVAILABLE, "SHUTTING_DOWN"), None]
            async with CartClient(scripted.address, timeout=seconds) as client:
                with pytest.raises(DeadlineExceeded) as late:
                    await client.cart("alice").add("beans")
        if len(scripted.attempts) == 2:
            break
    assert isinstance(late.value.__cause__, Unavailable)
    assert late.value.__cause__.reason == "SHUTTING_DOWN"


async def test_the_deadline_is_the_timeout_plus_the_wait(scripted: Scripted) -> None:
    scripted.script = [added(), added()]
    async with CartClient(scripted.address, timeout=5) as client:
        await client.cart("alice").add("beans")
        await client.cart("alice").add("beans", wait=20)
    plain, waiting = (attempt.seconds_left for attempt in scripted.attempts)
    assert 3 < plain <= 5.1
    assert 23 < waiting <= 25.1
    assert scripted.attempts[1].request.max_wait.seconds == 20
    assert not scripted.attempts[0].request.HasField("max_wait")


async def test_a_server_that_hangs_is_given_up_at_the_deadline() -> None:
    deadlines = growing(0.3)
    while True:
        seconds = next(deadlines)
        with scripted_server() as scripted:
            async with CartClient(scripted.address, timeout=seconds) as client:
                with pytest.raises(DeadlineExceeded) as late:
                    await client.cart("alice").add("beans")
        if scripted.attempts:
            break
    assert late.value.request_id == scripted.attempts[0].request.request_id


async def test_an_address_without_a_server_is_unavailable(unused_address: str) -> None:
    async with CartClient(unused_address, timeout=0.5) as client:
        with pytest.raises((Unavailable, DeadlineExceeded)) as ended:
            await client.cart("alice").get()
    assert "failed to connect" in str(check_unavailable(ended.value))


async def test_each_attempt_has_a_new_token(scripted: Scripted) -> None:
    tokens: Iterator[str] = iter(("one", "two"))

    async def token() -> str:
        return next(tokens)

    scripted.script = [refusal(StatusCode.UNAVAILABLE), added()]
    async with CartClient(scripted.address, token=token) as client:
        await client.cart("alice").add("beans")
    assert [attempt.authorization for attempt in scripted.attempts] == ["Bearer one", "Bearer two"]


async def test_each_attempt_has_the_metadata_of_its_time_beside_the_token(scripted: Scripted) -> None:
    current = iter(("first", "second"))
    scripted.script = [refusal(StatusCode.UNAVAILABLE), added()]

    def metadata() -> dict[str, str]:
        return {"traceparent": next(current)}

    async with CartClient(scripted.address, token=lambda: "one", metadata=metadata) as client:
        await client.cart("alice").add("beans")
    assert [attempt.traceparent for attempt in scripted.attempts] == ["first", "second"]
    assert [attempt.authorization for attempt in scripted.attempts] == ["Bearer one"] * 2


async def test_with_credentials_the_client_uses_tls() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    server_credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    with scripted_server(server_credentials) as scripted:
        scripted.script = [added()]
        trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        async with CartClient(scripted.address, credentials=trusting) as client:
            await client.cart("alice").add("beans")
        async with CartClient(scripted.address, timeout=1) as client:
            with pytest.raises((Unavailable, DeadlineExceeded)) as ended:
                await client.cart("alice").add("beans")
    check_unavailable(ended.value)
    assert len(scripted.attempts) == 1


async def test_unknown_and_malformed_details_are_ignored(scripted: Scripted, scripted_cart: AsyncCart) -> None:
    unknown = error_details_pb2.Help(links=[error_details_pb2.Help.Link(url="https://example.com")])
    info = error_details_pb2.ErrorInfo(reason="CART_CLOSED", metadata={"state": "EXPIRED"})
    malformed = with_details(StatusCode.FAILED_PRECONDITION, info)
    broken = grpc_status(malformed, b"\xff\xff\xff")
    scripted.script = [with_details(StatusCode.FAILED_PRECONDITION, unknown, info, unknown), broken]
    with pytest.raises(CartError) as refused:
        await scripted_cart.add("beans")
    assert (refused.value.reason, refused.value.metadata) == ("CART_CLOSED", {"state": "EXPIRED"})
    with pytest.raises(CartError) as refused:
        await scripted_cart.add("beans")
    assert (refused.value.code, refused.value.reason) == (StatusCode.FAILED_PRECONDITION, "")


class grpc_status(grpc.Status):  # noqa: N801 - a status with other details
    """The status, with these bytes as its details."""

    def __init__(self, status: grpc.Status, details: bytes) -> None:
        self.code = status.code
        self.details = status.details
        self.trailing_metadata = (("grpc-status-details-bin", details),)
