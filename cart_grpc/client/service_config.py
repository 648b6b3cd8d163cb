"""The gRPC service config: time limits, and the repetitions that are safe. Clients in all languages use the file.

gRPC does not look at requests, so the file lets it repeat reads only: a mutation without a request_id could have two
effects. Our clients give each mutation a request_id, and repeat it by the policy of reads.
"""

import json
from importlib.resources import files
from typing import Any, Final

FILE: Final = "service_config.json"


def load() -> dict[str, Any]:
    """Return the service config, as JSON has it."""
    config: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
    return config


def retry_policy(service: str, method: str) -> dict[str, Any]:
    """Return the retryPolicy of a method; an empty one if gRPC must not repeat it."""
    name = {"service": service, "method": method}
    for entry in load()["methodConfig"]:
        if name in entry["name"]:
            policy: dict[str, Any] = entry.get("retryPolicy", {})
            return policy
    return {}


def to_seconds(duration: str) -> float:
    """Return the seconds of a duration such as `0.5s`."""
    return float(duration.removesuffix("s"))
