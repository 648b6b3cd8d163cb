"""A real Prometheus for the tests: on loopback, scraping every second, with the rules from deploy/."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.monitoring.promql import RULES_FILE
from tests.ports import free_port

READY_SECONDS = 30.0


def find_program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`."""
    program = shutil.which(name)
    if program is None:
        raise RuntimeError(f"{name} is not installed: run `make debian-packages`")
    return program


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus at `address`, HOST:PORT."""

    address: str

    def query(self, query: str) -> list[Any]:
        """Return the series of an instant query. Fails if it is not valid or cannot be answered."""
        answer = self._get(f"query?{urllib.parse.urlencode({'query': query})}")
        assert answer["status"] == "success", answer
        result: list[Any] = answer["data"]["result"]
        return result

    def find_rule_errors(self) -> dict[str, str]:
        """Return the errors of the rules' last evaluations, by rule."""
        groups = self._get("rules")["data"]["groups"]
        return {rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")}

    def until(self, query: str) -> list[Any]:
        """Repeat a query until it has a result, and return it. Fails after 30 s."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if found := self.query(query):
                return found
            time.sleep(0.1)
        raise AssertionError(f"{query} never had a result")

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}", timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None


@contextmanager
def running_prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes `targets`, each HOST:PORT, as the job `cart-grpc`."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES_FILE)],
        "scrape_configs": [{"job_name": "cart-grpc", "static_configs": [{"targets": list(targets)}]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    command = [
        find_program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_until_ready(process, address, folder)
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=10):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"Prometheus does not start: {(folder / 'prometheus.log').read_text()[-2000:]}")
