"""Envoy before the server: gRPC-Web from a browser, Connect, and JSON."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.authentication.issuer import signing_key, write_key_set
from tests.client.shop import Shop
from tests.documents.pages import fences
from tests.pem import issue, new_authority
from tests.ports import free_port
from tests.sdk.conftest import ROOT, TYPESCRIPT, compile_typescript, run

pytestmark = [pytest.mark.sdk]
DOCUMENT = (ROOT / "docs" / "clients" / "web.md").read_text(encoding="utf-8")
ENVOY = str(Path(sys.executable).parent / "envoy")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Log nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files in a folder. Yields the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The origin of the page, and its folder."""
    folder = tmp_path_factory.mktemp("pages")
    with serving(folder) as origin:
        yield origin, folder


@pytest.fixture(scope="module")
def envoy(shop: Shop, origin: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an Envoy with the configuration in deploy/envoy, at other ports."""
    folder = tmp_path_factory.mktemp("envoy")
    [copy] = re.findall(r"^\$ (cp .+)$", DOCUMENT, re.MULTILINE)
    run(["sh", "-c", copy], folder)
    port = free_port()
    config = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    for old, new in (("8080", str(port)), ("50051", shop.address.rpartition(":")[2])):
        assert config.count(f"port_value: {old}") == 1
        config = config.replace(f"port_value: {old}", f"port_value: {new}")
    config = config.replace("http://127.0.0.1:3000", origin[0])
    (folder / "envoy.yaml").write_text(config)
    options = ["-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ENVOY, *options], cwd=folder, stdout=log, stderr=log)
    try:
        _wait_until_listening(process, port, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        return


def post(envoy: str, method: str, request: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    """Call a method with JSON. Returns the HTTP status, the headers and the response."""
    connection = HTTPConnection(envoy.removeprefix("http://"), timeout=20)
    sent = {"content-type": "application/json", **headers}
    connection.request("POST", f"/cartgrpc.v1.CartService/{method}", json.dumps(request), sent)
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, {key.lower(): value for key, value in response.getheaders()}, body


def test_envoy_accepts_the_configuration_with_tokens_in_the_document(tmp_path: Path) -> None:
    [config] = fences("docs/envoy.md", "yaml")
    (tmp_path / "envoy.yaml").write_text(config.text)
    shown = issue(new_authority())
    (tmp_path / "server.pem").write_bytes(shown.cert_chain_pems[0].bytes())
    (tmp_path / "server.key").write_bytes(shown.private_key_pem.bytes())
    write_key_set(tmp_path / "keys.json", signing_key("ES256"))
    options = ["--mode", "validate", "--log-level", "error", "-c", "envoy.yaml"]
    finished = subprocess.run([ENVOY, *options], cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
    assert finished.returncode == 0, finished.stderr


def test_json_adds_an_item(envoy: str) -> None:
    status, _, body = post(
        envoy, "AddItem", {"parent": "users/json/carts/default", "item": {"sku": "kettle"}, "maxWait": "10s"}
    )
    assert status == 200
    assert body["item"]["reservation"]["state"] == "STATE_RESERVED"
    assert isinstance(body["revision"], str)


def test_json_errors_have_their_details(envoy: str) -> None:
    status, _, body = post(envoy, "GetCart", {"name": "users/json/carts/none"})
    assert status == 404
    [info] = [detail for detail in body["details"] if detail["@type"].endswith("/google.rpc.ErrorInfo")]
    assert info["reason"] == "CART_NOT_FOUND"
    status, _, body = post(envoy, "AddItem", {"parent": "users/json/carts/default", "item": {"quantity": -1}})
    assert status == 400
    [request] = [detail for detail in body["details"] if detail["@type"].endswith("/google.rpc.BadRequest")]
    assert "item.quantity" in {violation["field"] for violation in request["fieldViolations"]}


def test_json_watches_with_a_line_for_each_state(envoy: str) -> None:
    post(envoy, "AddItem", {"parent": "users/jsonwatch/carts/default", "item": {"sku": "kettle"}, "maxWait": "10s"})
    request = urllib.request.Request(  # noqa: S310
        f"{envoy}/cartgrpc.v1.CartService/WatchCart",
        b'{"name": "users/jsonwatch/carts/default"}',
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as stream:  # noqa: S310
        assert json.loads(stream.readline())["cart"]["itemCount"] == 1


def test_only_the_origin_of_the_page_may_read_answers(envoy: str, origin: tuple[str, Path]) -> None:
    for asked, answered in ((origin[0], origin[0]), ("http://elsewhere.example", None)):
        _, headers, _ = post(envoy, "GetCart", {"name": "users/json/carts/none"}, origin=asked)
        assert headers.get("access-control-allow-origin") == answered
    assert "grpc-status-details-bin" in post(envoy, "GetCart", {}, origin=origin[0])[1]["access-control-expose-headers"]


def test_other_services_are_not_reachable(envoy: str) -> None:
    connection = HTTPConnection(envoy.removeprefix("http://"), timeout=20)
    connection.request(
        "POST", "/cartgrpc.v1.CartAdminService/GetProcessStats", "{}", {"content-type": "application/json"}
    )
    assert connection.getresponse().status == 404
    connection.close()


@pytest.fixture(scope="module")
def web_project(node_project: Path) -> Path:
    """The project with connect-web, which the package does not need."""
    modules = TYPESCRIPT / "node_modules" / "@connectrpc" / "connect-web"
    shutil.copytree(modules, node_project / "node_modules" / "@connectrpc" / "connect-web")
    return node_project


def test_connect_adds_watches_and_explains_errors(envoy: str, web_project: Path) -> None:
    shutil.copy(Path(__file__).parent / "bridge.ts", web_project)
    compile_typescript(web_project, "bridge.ts")
    assert run(["node", "bridge.js", envoy], web_project) == "2\n1\nInvalidArgument [ 'item.sku' ]\n"


def test_a_page_fills_a_cart_and_watches_it(
    envoy: str, origin: tuple[str, Path], web_project: Path, tmp_path: Path
) -> None:
    assert CHROMIUM, "Chromium is not installed"
    [program] = re.findall(r"^```typescript\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    [page] = re.findall(r"^```html\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    (web_project / "page.ts").write_text(program.replace("http://127.0.0.1:8080", envoy))
    compile_typescript(web_project, "page.ts")
    esbuild = str(TYPESCRIPT / "node_modules" / ".bin" / "esbuild")
    options = ["--bundle", "--format=esm", "--target=es2022", "--log-level=error"]
    run([esbuild, "page.js", *options, f"--outfile={origin[1]}/page.js"], web_project)
    (origin[1] / "index.html").write_text(page)
    browser = str(Path(__file__).parent / "browser.mjs")
    output = run(["node", browser, str(TYPESCRIPT), CHROMIUM, f"{origin[0]}/index.html", str(tmp_path)], tmp_path)
    assert output == "1 kettle RESERVED, 2 espresso-beans RESERVED\nINVALID_FIELD item.quantity\n"


def test_the_curl_commands_in_the_document_run(envoy: str) -> None:
    commands = re.findall(r"^\$ (curl .+)$", DOCUMENT, re.MULTILINE)
    outputs = [run(["sh", "-c", command.replace("http://127.0.0.1:8080", envoy)], ROOT) for command in commands]
    assert [json.loads(output).get("code") for output in outputs] == [None, 5]
