"""The compose file, as YAML or as Docker Compose understands it. No engine is needed."""

import functools
import json
from typing import Any, TypeAlias

import yaml

from tests.deployment.manifests import DEPLOY, output

FOLDER = DEPLOY / "compose"
FILE = FOLDER / "compose.yaml"
Service: TypeAlias = dict[str, Any]


def services() -> dict[str, Service]:
    """Return the services as written, with the YAML aliases replaced."""
    found: dict[str, Service] = yaml.safe_load(FILE.read_text())["services"]
    return found


@functools.cache
def understood() -> dict[str, Service]:
    """Return the services as Docker Compose understands them, those of the profile included."""
    text = output("docker-compose", "-f", str(FILE), "--profile", "monitoring", "config", "--format", "json")
    found: dict[str, Service] = json.loads(text)["services"]
    return found


def is_ours(service: Service) -> bool:
    return str(service["image"]).startswith("cart-grpc:")
