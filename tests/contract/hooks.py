"""The rules that the OpenAPI document cannot express. Schemathesis loads this module."""

import json
from typing import Any

import schemathesis

from cart_grpc import app


@schemathesis.deserializer("application/x-ndjson")
def read_lines(context: Any, response: Any) -> Any:
    """The line of an answer to a batch: a simulator without latency answers all entries at once."""
    return json.loads(response.content)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give a valid message a new id, in the path and in the body: another message may have decided the old one."""
    if case.meta.generation.mode is not schemathesis.GenerationMode.POSITIVE or not isinstance(case.body, dict):
        return
    for reservation in [case.body.get("reservation"), *case.body.get("reservations", [])]:
        if reservation:
            reservation["reservationId"] = app.new_id()
            if case.path_parameters:
                case.path_parameters["reservationId"] = reservation["reservationId"]
