"""The OpenAPI document agrees with the protos and with the simulator."""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from jsonschema import Draft202012Validator

from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import BoundPorts, SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from tests.intents import SECOND, Clock, after, hold

PATH = Path(__file__).parents[2] / "protos/cartgrpc/reservation/v1/reservation.openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
MESSAGES = reservation_pb2.DESCRIPTOR.message_types_by_name
TYPES: dict[int, object] = {
    FieldDescriptor.CPPTYPE_INT32: "integer",
    # A receiver accepts both (rule 8).
    FieldDescriptor.CPPTYPE_INT64: ["string", "integer"],
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_ENUM: "string",
}
# GetReservation has no body: its id is in the path.
WITHOUT_BODY = {"GetReservationRequest"}


def resolved(node: Mapping[str, Any]) -> Any:
    """The target of the reference in `node`, or `node` itself."""
    while "$ref" in node:
        target: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping below `node`."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def validate(instance: Any, schema: Mapping[str, Any]) -> None:
    """Raise ValidationError unless `instance` is valid by `schema` of the document."""
    root = {"components": DOCUMENT["components"], **schema}
    Draft202012Validator(root, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(instance)


def schema_of(path: str, method: str, status: int) -> Mapping[str, Any]:
    """The schema of the response with this status."""
    response = resolved(DOCUMENT["paths"][path][method]["responses"][str(status)])
    [media] = response["content"].values()
    schema: Mapping[str, Any] = media["schema"]
    return schema


def json_type(field: FieldDescriptor) -> object:
    """The JSON type of a field in proto3 JSON."""
    message = field.message_type
    if field.is_repeated:
        return "object" if message is not None and message.GetOptions().map_entry else "array"
    if message is not None:
        return "string" if message.file.package == "google.protobuf" else "object"
    return TYPES[field.cpp_type]


def test_the_document_is_openapi_3_1_with_valid_references_and_schemas() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    for node in nodes(DOCUMENT):
        resolved(node)
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - WITHOUT_BODY))
def test_a_schema_has_the_fields_of_its_message(name: str) -> None:
    properties = SCHEMAS[name]["properties"]
    fields = {field.json_name: field for field in MESSAGES[name].fields}
    assert set(properties) == set(fields)
    for json_name, field in fields.items():
        assert resolved(properties[json_name]).get("type", "object") == json_type(field), json_name


def test_every_message_and_operation_is_in_the_document() -> None:
    assert set(MESSAGES) - WITHOUT_BODY <= set(SCHEMAS)
    operations = {node["operationId"] for node in nodes(DOCUMENT["paths"]) if "operationId" in node}
    assert operations == {
        method.name for method in reservation_pb2.DESCRIPTOR.services_by_name["ReservationService"].methods
    }


@pytest.mark.parametrize("name", ["Disposition", "State"])
def test_an_enum_has_the_names_of_its_proto(name: str) -> None:
    enum = MESSAGES["Reservation"].enum_types_by_name[name]
    assert SCHEMAS[name]["enum"] == [value.name for value in enum.values]


def test_fields_that_are_output_only_in_the_protos_are_read_only() -> None:
    proto = PATH.with_name("reservation.proto").read_text()
    names = set(re.findall(r"// OUTPUT_ONLY\.[^\n]*\n\s+\S+ (\w+) =", proto))
    fields = MESSAGES["Reservation"].fields_by_name
    properties = SCHEMAS["Reservation"]["properties"]
    read_only = {name for name, schema in properties.items() if schema.get("readOnly")}
    assert read_only == {fields[name].json_name for name in names} != set()


def test_the_examples_are_valid() -> None:
    count = 0
    for node in nodes(DOCUMENT):
        for example in node.get("examples", {}).values() if "schema" in node else ():
            validate(example["value"], node["schema"])
            count += 1
    assert count > 8


def body_of(intent: Intent) -> dict[str, Any]:
    """The body that a client sends."""
    return json_format.MessageToDict(reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent)))


class Prover:
    """Calls the simulator and validates each request and response against the document."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def put(self, intent: Intent, expected: int, *, valid: bool = True) -> dict[str, Any]:
        """Apply `intent`; return the answer."""
        if valid:
            validate(body_of(intent), {"$ref": "#/components/schemas/ApplyReservationRequest"})
        path = f"/v1/reservations/{intent.reservation_id}"
        return await self._call("put", path, "/v1/reservations/{reservationId}", expected, json=body_of(intent))

    async def get(self, reservation_id: str, expected: int) -> dict[str, Any]:
        """Get a reservation; return the answer."""
        path = "/v1/reservations/{reservationId}"
        return await self._call("get", f"/v1/reservations/{reservation_id}", path, expected)

    async def lookup(self, body: Any, expected: int) -> dict[str, Any]:
        """Look reservations up; return the answer."""
        return await self._call("post", "/v1/reservations:lookup", "/v1/reservations:lookup", expected, json=body)

    async def batch(self, entries: Sequence[Any], expected: int) -> list[dict[str, Any]]:
        """Apply a batch of intents or bodies; return the results, or the answer alone if it is an error."""
        bodies = [body_of(each)["reservation"] if isinstance(each, Intent) else each for each in entries]
        path = "/v1/reservations:batchApply"
        if expected != 200:
            return [await self._call("post", path, path, expected, json={"reservations": bodies})]
        async with self._session.post(self._base + path, json={"reservations": bodies}) as response:
            assert (response.status, response.content_type) == (200, "application/x-ndjson")
            lines = [json.loads(line) async for line in response.content]
        for line in lines:
            validate(line, schema_of(path, "post", 200))
        return [result for line in lines for result in line["results"]]

    async def _call(self, method: str, path: str, template: str, expected: int, **options: Any) -> dict[str, Any]:
        async with self._session.request(method, self._base + path, **options) as response:
            body: dict[str, Any] = await response.json()
            assert (response.status, response.content_type) == (expected, "application/json")
            if expected == 429:
                assert response.headers["Retry-After"] == "1"
        validate(body, schema_of(template, method, expected))
        return body


@pytest.fixture
async def prover(simulator: Simulator) -> AsyncIterator[Prover]:
    """A prover of the running simulator."""
    server = SimulatorServer(simulator)
    ports: BoundPorts = await server.start(None, "127.0.0.1:0")
    async with aiohttp.ClientSession() as session:
        yield Prover(session, f"http://127.0.0.1:{ports.http}")
    await server.stop(0)


async def test_every_decision_of_the_simulator_is_valid_by_the_document(prover: Prover, clock: Clock) -> None:
    first = hold(2)
    states = [await prover.put(first, 200), await prover.put(hold(11), 200)]
    changed = after(first, Disposition.HOLD, quantity=11)
    states.append(await prover.put(changed, 200))
    overtaken = await prover.put(first, 409)
    assert overtaken["reservation"]["state"] == "STATE_REJECTED"
    committed = after(changed, Disposition.COMMIT, quantity=2)
    states.append(await prover.put(committed, 200))
    second = hold(1)
    await prover.put(second, 200)
    clock.now += 600 * SECOND
    states.append(await prover.put(second, 200))
    states.append(await prover.put(after(second, Disposition.RELEASE), 200))
    assert [each["reservation"]["state"].removeprefix("STATE_") for each in states] == [
        "HELD", "REJECTED", "REJECTED", "COMMITTED", "EXPIRED", "RELEASED",
    ]  # fmt: skip
    await prover.get(second.reservation_id, 200)
    found = await prover.lookup({"reservationIds": [second.reservation_id, hold().reservation_id]}, 200)
    assert (len(found["found"]), len(found["missing"])) == (1, 1)
    assert await prover.lookup({}, 200) == {}


async def test_every_result_of_a_batch_is_valid_by_the_document(prover: Prover, simulator: Simulator) -> None:
    held, sold_out, overtaken, odd = hold(2), hold(11), hold(1), hold(1)
    await prover.put(after(overtaken, Disposition.HOLD), 200)
    wrong = body_of(odd)["reservation"] | {"quantity": 2**40}
    results = await prover.batch([held, sold_out, overtaken, wrong], 200)
    by_id = {result["reservationId"]: result for result in results}
    assert len(by_id) == len(results) == 4
    assert by_id[held.reservation_id]["reservation"]["state"] == "STATE_HELD"
    assert by_id[sold_out.reservation_id]["reservation"]["reason"] == "OUT_OF_STOCK"
    assert by_id[overtaken.reservation_id]["error"]["current"]["revision"] == "2"
    assert by_id[odd.reservation_id]["error"]["code"] == 3
    simulator.faults = Faults(throttled=1)
    [result] = await prover.batch([hold()], 200)
    assert (result["error"]["code"], result["error"]["retryDelay"]) == (8, "1s")


async def test_a_batch_that_is_refused_as_a_whole_is_valid_by_the_document(
    prover: Prover, simulator: Simulator
) -> None:
    for entries in ([], [hold() for _ in range(101)], [hold()] * 2, "x", [3], [{"sku": "tea"}]):
        await prover.batch(entries, 400)
    simulator.faults = Faults(down=True)
    await prover.batch([hold()], 503)
    simulator.faults = Faults(no_batches=True)
    await prover.batch([hold()], 404)


async def test_every_error_of_the_simulator_is_valid_by_the_document(prover: Prover, simulator: Simulator) -> None:
    first = hold(2)
    await prover.put(first, 200)
    assert (await prover.put(replace(first, quantity=3), 400))["error"]["reason"] == "REVISION_BODY_MISMATCH"
    await prover.put(hold(0), 400, valid=False)
    await prover.put(hold(revision=0), 400, valid=False)
    await prover.get("x", 400)
    await prover.get(hold().reservation_id, 404)
    await prover.lookup([], 400)
    await prover.lookup({"reservationIds": ["x"] * 501}, 400)
    simulator.faults = Faults(throttled=1)
    await prover.put(hold(), 429)
    simulator.faults = Faults(refused=1)
    await prover.put(hold(), 400)
    simulator.faults = Faults(down=True)
    await prover.put(hold(), 503)
    await prover.get(first.reservation_id, 503)
    await prover.lookup({}, 503)


@pytest.mark.parametrize("wrong", [{"state": "STATE_SOLD"}, {"expireTime": 7}, {"revision": 0}, {"reservationId": "1"}])
def test_the_document_rejects_invalid_responses(wrong: dict[str, Any]) -> None:
    held = DOCUMENT["paths"]["/v1/reservations/{reservationId}"]["put"]["responses"]["200"]["content"]
    right = held["application/json"]["examples"]["held"]["value"]["reservation"]
    validate(right, {"$ref": "#/components/schemas/DecidedReservation"})
    with pytest.raises(Exception, match=r"Failed validating"):
        validate(right | wrong, {"$ref": "#/components/schemas/DecidedReservation"})
