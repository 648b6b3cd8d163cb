"""The code in the documents that no test in this folder runs, with the reason.

An entry is the page and how the code begins: a command, a language as in ```python, or the first words of other code.
All commands of the pages that are not here run in `test_console.py`.
"""

from tests.documents.pages import PYTHON_CLIENT

_TYPESCRIPT = "make sdk-check builds the package, and installs it into an empty project"
_ENGINE = "it needs a container engine; make deploy-check checks the files, and make debian starts the services"
_CLUSTER = "it needs a cluster; make deploy-check checks the manifests"
_ARCHIVE = "it needs a PostgreSQL server of its own; tests/debian/test_backup.py makes the same backup and recovery"
_PRINTED = "it is printed"

ELSEWHERE = {
    ("README.md", "```python"): "tests/client/test_docs.py runs it",
    ("docs/quick-start.md", "grpcurl"): "it needs grpcurl; the same call follows with buf",
    (PYTHON_CLIENT, "```python"): "tests/client/test_docs.py runs it",
    (PYTHON_CLIENT, "pip install cart-grpc"): "tests/release/test_distributions.py installs the wheel",
    ("docs/clients/typescript.md", "make sdk-typescript"): _TYPESCRIPT,
    ("docs/clients/typescript.md", "npm install build/sdk/"): _TYPESCRIPT,
    ("docs/clients/typescript.md", "npm install --save-dev"): "make sdk-check has both from the package's lock file",
    ("docs/clients/typescript.md", "npx tsc"): "tests/sdk/conftest.py compiles with these options",
    ("docs/clients/typescript.md", "node shop.js"): "tests/sdk/test_typescript.py runs each program",
    ("docs/clients/typescript.md", "```typescript"): "tests/sdk/test_typescript.py runs it",
    ("docs/clients/go.md", "buf generate"): "tests/sdk/test_go_and_java.py runs it",
    ("docs/clients/go.md", "```go"): "tests/sdk/test_go_and_java.py runs it",
    ("docs/clients/java.md", "buf generate"): "tests/sdk/test_go_and_java.py runs it",
    ("docs/clients/java.md", "```java"): "tests/sdk/test_go_and_java.py runs it",
    ("docs/clients/web.md", "cp"): "tests/sdk/test_envoy.py runs it",
    ("docs/clients/web.md", "envoy"): "tests/sdk/test_envoy.py starts Envoy with this file, at other ports",
    ("docs/clients/web.md", "```typescript"): "tests/sdk/test_envoy.py opens this page in Chromium",
    ("docs/clients/web.md", "```html"): "tests/sdk/test_envoy.py opens this page in Chromium",
    ("docs/clients/web.md", "curl"): "tests/sdk/test_envoy.py runs it",
    ("docs/running.md", "docker run"): _ENGINE,
    ("docs/operations.md", "cart-grpc reservations stats --address carts-1.example"): "the host does not exist",
    ("docs/operations.md", "promtool"): "tests/debian/test_prometheus.py runs it",
    ("docs/backup.md", "sqlite3"): "it needs sqlite3; tests/debian/test_backup.py runs it",
    ("docs/backup.md", "pg_basebackup"): _ARCHIVE,
    ("docs/backup.md", "pg_verifybackup"): "it is PostgreSQL's own check of that backup",
    ("docs/backup.md", "pg_dump"): "tests/processes/test_restore.py runs it",
    ("docs/backup.md", "cp -a /backup/base"): _ARCHIVE,
    ("docs/backup.md", "cat >>/var/lib/postgresql"): _ARCHIVE,
    ("docs/backup.md", "touch /var/lib/postgresql"): _ARCHIVE,
    ("docs/backup.md", "pg_ctl"): _ARCHIVE,
    ("docs/backup.md", "psql -c 'SELECT pg_is_in_recovery()'"): _ARCHIVE,
    ("docs/backup.md", "createdb"): "tests/processes/test_restore.py creates the same database",
    ("docs/backup.md", "pg_restore"): "tests/processes/test_restore.py runs it",
    ("docs/backup.md", "psql -d restored -c ANALYZE"): "it needs psql",
    ("docs/backup.md", "CART_DATABASE_URL=postgresql://…/restored"): "tests/processes/test_restore.py runs it",
    ("docs/backup.md", "cart-grpc serve"): "tests/processes/test_restore.py starts the server after a restore",
    ("docs/backup.md", "cart-grpc: CART_DATABASE_URL: the database"): _PRINTED,
    ("docs/deployment.md", "make image"): _ENGINE,
    ("docs/deployment.md", "docker"): _ENGINE,
    ("docs/deployment.md", "cd deploy/compose"): _ENGINE,
    ("docs/deployment.md", "mkdir --mode=0700 secrets"): _ENGINE,
    ("docs/deployment.md", "kubectl"): _CLUSTER,
    ("docs/deployment.md", "deploy/kubernetes/"): "it is a list of folders",
    ("docs/logging.md", "cart-grpc serve 2>&1 >/dev/null | jq"): "it needs jq",
    (
        "docs/tracing.md",
        "cart-grpc serve",
    ): "tests/processes/test_traces.py starts a server that exports to a collector",
    (
        "docs/scaling.md",
        "export CART_DATABASE_URL",
    ): "the host does not exist; see tests/store/test_shards.py",
    ("docs/capacity.md", "sessions "): "it is a formula",
    ("docs/capacity.md", "memory of a replica"): "it is a formula",
}


def find(page: str, code: str) -> list[tuple[str, str]]:
    """Return the entries for code of a page."""
    return [entry for entry in ELSEWHERE if entry[0] == page and code.startswith(entry[1])]
