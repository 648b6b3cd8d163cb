"""The compose file and the Dockerfile: Docker Compose and hadolint accept them, and they fit the settings."""

import re

import pytest
import yaml

from cart_grpc.configuration import load
from cart_grpc.settings import Settings, variable_of
from tests.deployment.compose import FOLDER, is_ours, understood
from tests.deployment.manifests import ROOT, output, port_of
from tests.deployment.versions import project_version

pytestmark = pytest.mark.deploy
REPLICAS = ("cart-1", "cart-2")


def replica_settings() -> Settings:
    first, second = (understood()[name] for name in REPLICAS)
    assert first == second
    return load(first["environment"])


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert output("hadolint", "--failure-threshold", "style", str(ROOT / "Dockerfile")) == ""


def test_our_services_run_the_image_of_this_release_with_settings_that_exist() -> None:
    names = {variable_of(name) for name in Settings.model_fields}
    ours = {name: service for name, service in understood().items() if is_ours(service)}
    assert ours.keys() == {"migrate", "simulator", *REPLICAS}
    for service in ours.values():
        assert service["image"] == f"cart-grpc:{project_version()}"
        variables = service.get("environment", {})
        assert variables.keys() <= names
        load(variables, warn=pytest.fail)


def test_a_replica_may_finish_before_it_is_killed() -> None:
    loaded = replica_settings()
    for name in REPLICAS:
        grace = re.fullmatch(r"(\d+)s", understood()[name]["stop_grace_period"])
        assert grace
        assert int(grace[1]) >= loaded.lame_duck + loaded.shutdown_grace + 5
    assert loaded.shutdown_grace >= loaded.call_timeout


def test_the_proxy_notices_a_stopping_replica_within_its_lame_duck_time() -> None:
    text = (FOLDER / "haproxy.cfg").read_text()
    check = re.search(r"default-server .* inter (\d+)s fall (\d+) ", text)
    timeout = re.search(r"timeout check (\d+)s", text)
    assert check
    assert timeout
    assert int(check[1]) * int(check[2]) + int(timeout[1]) < replica_settings().lame_duck


def test_the_proxy_and_prometheus_know_all_replicas_and_their_ports() -> None:
    loaded = replica_settings()
    servers = re.findall(r"^    server \w+ (\S+)$", (FOLDER / "haproxy.cfg").read_text(), re.MULTILINE)
    assert servers == [f"{name}:{port_of(loaded.listen)}" for name in REPLICAS]
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (scraped,) = job["static_configs"]
    assert scraped["targets"] == [f"{name}:{port_of(loaded.metrics_listen)}" for name in REPLICAS]


@pytest.mark.parametrize("name", ["postgresql", "migrate", "simulator", *REPLICAS, "proxy", "prometheus"])
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = understood()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))
    assert ("ports" in service) == ("outside" in service["networks"]) == (name in ("proxy", "prometheus"))


def test_the_password_is_in_a_file_and_not_in_the_environment() -> None:
    passwords = {}
    for name, service in understood().items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                passwords[name] = value
                assert variable.endswith("_FILE")
    assert passwords.keys() == {"postgresql", "migrate", *REPLICAS}
    for name, file in passwords.items():
        assert [secret["target"] for secret in understood()[name]["secrets"]] == [file]
    assert load(understood()["migrate"]["environment"]).shown()["CART_DATABASE_URL"] == (
        "postgresql://cart@postgresql:5432/cart"
    )


def test_a_service_starts_after_those_that_it_needs() -> None:
    needs = {
        name: {other: one["condition"] for other, one in service.get("depends_on", {}).items()}
        for name, service in understood().items()
    }
    assert needs["migrate"] == {"postgresql": "service_healthy"}
    for name in REPLICAS:
        assert needs[name]["migrate"] == "service_completed_successfully"
        assert needs["proxy"][name] == "service_healthy"
