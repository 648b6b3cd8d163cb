"""The metadata of the project, which other files repeat."""

import tomllib
from typing import Any

from tests.deployment.manifests import ROOT


def project() -> dict[str, Any]:
    """Return the metadata in pyproject.toml."""
    metadata: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return metadata


def project_version() -> str:
    version: str = project()["version"]
    return version
