"""The versions that the files name."""

import tomllib

from tests.deployment.manifests import ROOT


def project_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version
