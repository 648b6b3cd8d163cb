"""The Kubernetes manifests: valid by the published schemas, and fit for the settings and for each other."""

import importlib
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from cart_grpc.configuration import load
from cart_grpc.settings import Settings, variable_of
from tests.deployment.manifests import (
    OVERLAYS,
    build,
    containers,
    of_kind,
    only,
    pod_templates,
    port_of,
    server,
    settings,
)
from tests.deployment.versions import project_version

pytestmark = [pytest.mark.deploy, pytest.mark.parametrize("overlay", OVERLAYS)]
# The Prometheus Operator publishes no schema that a package carries. These are its fields that we use.
SERVICE_MONITOR: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "spec": {
            "type": "object",
            "required": ["selector", "endpoints"],
            "additionalProperties": False,
            "properties": {
                "selector": {"type": "object", "required": ["matchLabels"]},
                "endpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                            "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                        },
                    },
                },
            },
        },
    },
}


def test_each_object_is_valid_by_the_published_schemas(overlay: str) -> None:
    # Only `make deploy-check` installs it, and all runs import this file.
    schemas = importlib.import_module("kubernetes_validate")
    for one in build(overlay):
        if one["kind"] == "ServiceMonitor":
            jsonschema.validate(one, SERVICE_MONITOR)
        else:
            schemas.validate(one, "1.37", strict=True)


def test_each_variable_is_a_setting_with_a_valid_value(overlay: str) -> None:
    names = {variable_of(name) for name in Settings.model_fields}
    assert settings(overlay).keys() <= names
    warnings: list[str] = []
    loaded = load(settings(overlay), warn=warnings.append)
    assert warnings == []
    assert loaded.is_embedded == (overlay == "sqlite")
    for _, container in containers(overlay):
        assert [source["configMapRef"]["name"] for source in container["envFrom"]] == [
            only(overlay, "ConfigMap")["metadata"]["name"]
        ]
        assert "env" not in container


def test_no_caller_is_anyone(overlay: str) -> None:
    loaded = load(settings(overlay))
    assert not loaded.allow_anyone_to_be_any_user
    assert loaded.listen == ""
    assert loaded.services


def test_the_kubelet_waits_until_the_server_has_stopped(overlay: str) -> None:
    loaded = load(settings(overlay))
    spec = server(overlay)["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= loaded.lame_duck + loaded.shutdown_grace + 5
    assert loaded.shutdown_grace >= loaded.call_timeout
    (container,) = spec["containers"]
    assert "lifecycle" not in container
    # A caller that asks for readiness notices within the lame-duck time.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < loaded.lame_duck


def test_the_ports_are_those_of_the_settings(overlay: str) -> None:
    loaded = load(settings(overlay))
    (container,) = server(overlay)["spec"]["template"]["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    addresses = {"grpc": loaded.service_listen, "health": loaded.health_listen, "metrics": loaded.metrics_listen}
    assert ports == {name: port_of(address) for name, address in addresses.items()}
    assert all(address.startswith("0.0.0.0:") for address in addresses.values())
    for one in only(overlay, "Service")["spec"]["ports"]:
        assert ports[one["targetPort"]] == one["port"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == ports["health"]
    (endpoint,) = only(overlay, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] in {one["name"] for one in only(overlay, "Service")["spec"]["ports"]}
    policy = of_kind(overlay, "NetworkPolicy")[0]["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == set(ports.values())


def test_only_the_readiness_probe_depends_on_the_database(overlay: str) -> None:
    (container,) = server(overlay)["spec"]["template"]["spec"]["containers"]
    services = {
        name: container[f"{name}Probe"]["grpc"].get("service", "") for name in ("startup", "liveness", "readiness")
    }
    assert services == {"startup": "", "liveness": "", "readiness": "cartgrpc.v1.CartService"}


def test_all_selectors_select_the_pods_of_the_server(overlay: str) -> None:
    workload = server(overlay)
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        workload["spec"]["selector"]["matchLabels"],
        only(overlay, "Service")["spec"]["selector"],
        *(one["spec"]["podSelector"]["matchLabels"] for one in of_kind(overlay, "NetworkPolicy")),
        *(one["spec"]["selector"]["matchLabels"] for one in of_kind(overlay, "PodDisruptionBudget")),
        *(one["labelSelector"]["matchLabels"] for one in _spread(workload)),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    monitored = only(overlay, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= only(overlay, "Service")["metadata"]["labels"].items()


def test_the_policies_apply_to_the_migration_and_only_servers_get_calls(overlay: str) -> None:
    selector = only(overlay, "Service")["spec"]["selector"].items()
    receiving = [one for one in pod_templates(overlay) if selector <= one["metadata"]["labels"].items()]
    assert receiving == [server(overlay)["spec"]["template"]]
    for template in pod_templates(overlay):
        for policy in of_kind(overlay, "NetworkPolicy"):
            assert policy["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_the_policies_let_in_callers_with_a_label_and_out_what_the_settings_need(overlay: str) -> None:
    policies = [one["spec"] for one in of_kind(overlay, "NetworkPolicy")]
    callers, kubelet, prometheus = policies[0]["ingress"]
    # Kustomize can add its labels to these selectors, too. Then no caller would match.
    assert callers["from"] == [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"cart-grpc/caller": "true"}}}]
    assert "from" not in kubelet
    assert [peer.keys() for peer in prometheus["from"]] == [{"namespaceSelector"}]
    dns = policies[0]["egress"][0]
    assert [peer["podSelector"]["matchLabels"] for peer in dns["to"]] == [{"k8s-app": "kube-dns"}]
    urls = (settings(overlay)[name] for name in ("CART_RESERVATION_URL", "CART_DATABASE_URL"))
    needed = {53} | {urlsplit(url).port for url in urls} - {None}
    assert {port["port"] for one in policies for rule in one["egress"] for port in rule["ports"]} == needed


def test_replicas_spread_and_survive_a_drain_if_the_database_allows_several(overlay: str) -> None:
    workload = server(overlay)
    if overlay == "sqlite":
        # A budget for one pod would only prevent every drain.
        assert (workload["kind"], workload["spec"]["replicas"]) == ("StatefulSet", 1)
        assert of_kind(overlay, "PodDisruptionBudget") == []
        return
    budget = only(overlay, "PodDisruptionBudget")["spec"]
    assert workload["spec"]["replicas"] > budget["maxUnavailable"]
    assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    keys = {one["topologyKey"] for one in _spread(workload)}
    assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


def _spread(workload: dict[str, Any]) -> list[dict[str, Any]]:
    constraints: list[dict[str, Any]] = workload["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
    return constraints


def test_each_container_keeps_the_restricted_pod_security_standard_and_a_read_only_root(overlay: str) -> None:
    for spec, container in containers(overlay):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["fsGroup"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_all_containers_run_the_image_of_this_release(overlay: str) -> None:
    assert {container["image"] for _, container in containers(overlay)} == {f"cart-grpc:{project_version()}"}


def test_the_files_that_the_settings_name_are_mounted(overlay: str) -> None:
    loaded = load(settings(overlay))
    (container,) = server(overlay)["spec"]["template"]["spec"]["containers"]
    mounts = [one["mountPath"] for one in container["volumeMounts"]]
    files = [loaded.tls_cert_file, loaded.tls_key_file, loaded.client_ca_file, loaded.database_password_file]
    if overlay == "sqlite":
        files = [*files, loaded.database_url.get_secret_value().removeprefix("sqlite:///")]
    for file in filter(None, files):
        assert file.rpartition("/")[0] in mounts


def test_the_schema_is_migrated_before_the_server_is_ready(overlay: str) -> None:
    migrations = [container for _, container in containers(overlay) if container["args"] == ["cart-grpc", "migrate"]]
    assert len(migrations) == 1
    if overlay == "sqlite":
        # The file belongs to one process at a time.
        assert migrations == server(overlay)["spec"]["template"]["spec"]["initContainers"]
