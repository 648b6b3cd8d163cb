.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that runs, is new enough and is complete. PYTHON=... chooses another one.
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)
PYTEST := $(BIN)/python -m pytest
PYTEST_ARGS ?=
# Three for two cores, because the tests also wait for servers and time-outs. Four are no faster and use more CPU.
WORKERS ?= 3
# One worker begins with the tests of processes, which wait for most of their time. The others take over the rest of its part.
PARALLEL := -n $(WORKERS) --dist worksteal
SOURCES := cart_grpc docs/conf.py docs/examples tests tools benchmarks
# Before Python 3.14, coverage.py makes the tests two or three times as slow: it traces every line. SlipCover does not.
# Its warning is about the files of the tests, which are not measured.
SLIPCOVER := $(BIN)/python -W ignore::RuntimeWarning -m slipcover
COVERED := build/coverage
MIN_COVERAGE := 95
SEED ?=
SEEDS ?= 1000
FIRST ?= 0
RUNS ?= 10000
TARGET ?=
PROTOS := $(sort $(shell for folder in protos compat-protos; do (cd $$folder && find * -name '*.proto'); done))
RELEASE := protos/released.json
IMAGE ?= cart-grpc
# The tests start the command a hundred times. Without cached bytecode, each start compiles every import again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## create .venv with all that the other targets need

# An environment that runs and has pip, or gets it from `install`. An older one is kept.
define make_venv
@python=; \
for candidate in $(PYTHONS); do \
  if "$$candidate" -c 'import ensurepip, sqlite3, ssl, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
  then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "make setup: none of '$(PYTHONS)' is a Python >= 3.11 with sqlite3, ssl and venv; install one or set PYTHON=/path/to/python3" >&2; \
  exit 2; \
fi; \
if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
then "$$python" -m venv --clear --without-pip $(VENV); fi
endef

# Installs the project with some extras, and pip for the user. uv takes a tenth of pip's CPU time; it comes by the base
# Python's pip. It does not read pip's configuration, so pip does it all if uv cannot reach its index, or if the base Python
# has no pip.
comma := ,
define install
@{ { [ -x $(BIN)/uv ] || "$$($(BIN)/python -c 'import sys; print(sys._base_executable)')" -m pip --python $(BIN)/python \
    install --quiet --disable-pip-version-check uv -c constraints.txt; } && \
  $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[$(1)]' pip -c constraints.txt; } 2>/dev/null || \
{ $(BIN)/python -m ensurepip --default-pip >/dev/null && \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]' -c constraints.txt; }
endef

$(STAMP): pyproject.toml constraints.txt
	@echo "installing the development tools into $(VENV)"
	$(make_venv)
	$(call install,dev)
	@touch $@

# Serving needs a quarter of the packages. With the development tools, it needs nothing more.
SERVING_STAMP := $(VENV)/.serving-installed
$(SERVING_STAMP): pyproject.toml constraints.txt
	@echo "installing the server into $(VENV)"
	$(make_venv)
	$(call install,cli$(comma)server)
	@touch $@

.PHONY: run
run: $(if $(wildcard $(STAMP)),setup,$(SERVING_STAMP)) ## start the server on a SQLite file, and the simulator
	$(BIN)/cart-grpc dev

.PHONY: test
test: setup ## run the tests on SQLite and PostgreSQL
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

.PHONY: coverage
coverage: setup ## run the tests, and fail below the minimum of branch coverage
	@mkdir -p $(COVERED)
	$(SLIPCOVER) --json --out $(COVERED)/tests.json -m pytest $(PARALLEL) $(PYTEST_ARGS)
	@$(SLIPCOVER) --merge $(COVERED)/tests.json --out $(COVERED)/all.json --fail-under $(MIN_COVERAGE) >$(COVERED)/report || \
	{ cat $(COVERED)/report; echo "less than $(MIN_COVERAGE) % of the lines and branches are covered" >&2; exit 1; }

.PHONY: night
night: setup debian-packages ## run the long tests, and those that need Debian packages
	$(PYTEST) -m "night or debian" --timeout=0 $(PYTEST_ARGS)

DEBIAN_PROGRAMS := pgbouncer haproxy faketime postgresql prometheus sqlite3
.PHONY: debian-packages
debian-packages:
	@for program in $(DEBIAN_PROGRAMS); do \
	  PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || [ -d /usr/lib/$$program ] || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet $(DEBIAN_PROGRAMS); \
	else echo "make: these tests need$$missing; on Debian: sudo apt-get install $(DEBIAN_PROGRAMS)" >&2; exit 2; fi

.PHONY: debian
debian: setup debian-packages ## run the tests against Debian's PgBouncer, HAProxy, libfaketime, PostgreSQL, Prometheus and sqlite3
	$(PYTEST) -m debian $(PYTEST_ARGS)

CITUS_URL ?=
# Those that only call the service. Others change rows of all shards with one statement, by parents of the tables, which a
# distributed table cannot have.
ON_CITUS := basic carts main_path merge messages_to_the_api races replace_items two_replicas
.PHONY: test-citus
test-citus: setup ## run servers and tests of the service on the Citus cluster of CITUS_URL=, and make its nodes crash
	@[ -n "$(CITUS_URL)" ] || { echo "make: set CITUS_URL to a superuser's URL of a coordinator with two workers" >&2; exit 2; }
	CITUS_URL="$(CITUS_URL)" $(PYTEST) -m citus tests/citus $(PYTEST_ARGS)
	CITUS_URL="$(CITUS_URL)" $(PYTEST) -k postgresql $(ON_CITUS:%=tests/service/test_%.py) $(PYTEST_ARGS)

DEPLOY_STAMP := $(VENV)/.deploy-installed
$(DEPLOY_STAMP): $(STAMP)
	$(call install,dev$(comma)deploy)
	@touch $@

.PHONY: deploy-check
deploy-check: $(DEPLOY_STAMP) ## run the steps of the Dockerfile; check the compose file and the manifests, without an engine or a cluster
	$(PYTEST) -m deploy tests/deployment $(PYTEST_ARGS)

DOCS_STAMP := $(VENV)/.docs-installed
$(DOCS_STAMP): $(STAMP)
	$(call install,dev$(comma)docs)
	@touch $@

.PHONY: docs
docs: $(DOCS_STAMP) ## build the documentation site in build/docs
	@rm -rf build/docs
	$(BIN)/python -m tools.site .
	$(BIN)/python -m sphinx --quiet --nitpicky --fail-on-warning -c docs -d build/doctrees build/site build/docs
	@echo "open build/docs/index.html"

.PHONY: docs-check
docs-check: $(DOCS_STAMP) ## build the documentation site, and fail for a broken link, a warning or an asset of another host
	$(PYTEST) -m docs tests/documents $(PYTEST_ARGS)

RELEASE_STAMP := $(VENV)/.release-installed
$(RELEASE_STAMP): $(STAMP)
	$(call install,dev$(comma)release)
	@touch $@

.PHONY: release-check
release-check: $(RELEASE_STAMP) ## build the distributions twice, check them, and install them with each supported Python
	$(PYTEST) -m release tests/release $(PYTEST_ARGS)

.PHONY: dist
dist: $(RELEASE_STAMP) ## build the distributions of a release in dist/
	rm -rf dist
	$(BIN)/python -m build --installer uv --outdir dist

.PHONY: simulate
simulate: setup ## run SEEDS=1000 seeds of the simulation, starting at FIRST=0; or replay SEED=
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --first $(FIRST))

FUZZ_STAMP := $(VENV)/.fuzz-installed
$(FUZZ_STAMP): $(STAMP)
	$(call install,dev$(comma)fuzz)
	@touch $@

.PHONY: fuzz
fuzz: $(FUZZ_STAMP) ## run each fuzz target RUNS=10000 times; TARGET= chooses one
	$(BIN)/python -m tests.fuzz $(TARGET) --runs $(RUNS)

# The benchmarks' load generator. Nothing else here needs a C compiler.
LOAD := build/load
NGHTTP2 := apt-get install --yes gcc libc6-dev libnghttp2-dev

$(LOAD): benchmarks/load.c
	@mkdir -p $(@D)
	@if ! echo '#include <nghttp2/nghttp2.h>' | cc -E - >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update --quiet && $(NGHTTP2); \
	  else echo "make: $@ needs a C compiler and libnghttp2's headers; on Debian: sudo $(NGHTTP2)" >&2; exit 2; fi; fi
	cc -O2 -Wall -Wextra -o $@ $< -lnghttp2

.PHONY: load
load: $(LOAD) ## build the benchmarks' load generator

BENCH_STAMP := $(VENV)/.bench-installed
$(BENCH_STAMP): $(STAMP)
	$(call install,dev$(comma)bench)
	@touch $@

.PHONY: bench
bench: $(BENCH_STAMP) $(LOAD) ## measure for a quarter of an hour and write docs/performance.md; options in BENCH=
	$(BIN)/python -m benchmarks.run $(BENCH)

.PHONY: bench-check
bench-check: $(BENCH_STAMP) $(LOAD) ## measure the main path for two minutes; fail if a ratio fell by more than the noise
	$(BIN)/python -m benchmarks.run --results-only build/bench/check.json reserved table
	$(BIN)/python -m benchmarks.ratios build/bench/check.json

.PHONY: check
check: format-check lint typecheck generated-current sync-client-current docs-check contract-check deploy-check release-check sdk-check coverage ## run all that CI runs

.PHONY: format
format: setup ## format Python and protos, and apply ruff's fixes
	$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/buf format -w

.PHONY: format-check
format-check: setup ## fail if a file is not formatted
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/buf format -d --exit-code

.PHONY: lint
lint: setup ## run ruff, import-linter, buf lint, and buf breaking against the last release
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking protos --against $(RELEASE)

.PHONY: typecheck
typecheck: setup ## run mypy --strict
	$(BIN)/mypy

# Generated code does not load under a grpcio or protobuf older than its generator. An old generator lets callers keep old
# versions; it needs an environment of its own. When you raise it, raise the minimum versions in pyproject.toml, too.
GENERATOR := build/generator
GENERATOR_PACKAGES := grpcio-tools==1.75.1 mypy-protobuf==5.1.0 "protobuf<7" googleapis-common-protos==1.70.0

$(GENERATOR)/.installed: Makefile $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(GENERATOR)
	$(BIN)/python -m pip --python $(GENERATOR) install --quiet --disable-pip-version-check $(GENERATOR_PACKAGES)
	@touch $@

# We call protoc directly, because buf cannot run the gRPC plugin of grpc_tools. $(1) is the output folder. The second call
# writes the descriptors for transcoders and for other languages, with the details of errors.
DESCRIPTORS := generated/cartgrpc/descriptors.binpb
protoc = export PATH="$(CURDIR)/$(GENERATOR)/bin:$$PATH" && \
	$(GENERATOR)/bin/python -m grpc_tools.protoc -Iprotos -Icompat-protos \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS) && \
	$(GENERATOR)/bin/python -m grpc_tools.protoc -Iprotos -I$$($(GENERATOR)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') --include_imports --include_source_info \
	--descriptor_set_out=$(1)/cartgrpc/descriptors.binpb $(filter cartgrpc/v1/%,$(PROTOS)) \
	google/rpc/status.proto google/rpc/error_details.proto

.PHONY: generate
generate: $(GENERATOR)/.installed ## generate generated/ from protos/
	rm -rf generated
	mkdir -p generated/cartgrpc
	$(call protoc,generated)
	@touch generated/cartgrpc/py.typed

.PHONY: generated-current
generated-current: $(GENERATOR)/.installed ## fail if generated/ does not match protos/
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && mkdir "$$fresh/cartgrpc" && touch "$$fresh/cartgrpc/py.typed" && \
	$(call protoc,"$$fresh") && \
	{ diff -r -x __pycache__ generated "$$fresh" || { echo "generated/ is stale: run 'make generate'" >&2; exit 1; }; }

# The code for other languages is made here and not committed: packages carry it, and it needs their toolchains.
SDK := build/sdk
SDK_STAMP := $(VENV)/.sdk-installed
$(SDK_STAMP): $(STAMP)
	$(call install,dev$(comma)sdk)
	@touch $@

TYPESCRIPT := sdk/typescript
$(TYPESCRIPT)/node_modules/.installed: $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json
	@node -e 'process.exit(Number(parseInt(process.versions.node) < 20))' 2>/dev/null && command -v npm >/dev/null || \
	{ echo "make: the npm package needs Node.js 20 or newer, with npm" >&2; exit 2; }
	cd $(TYPESCRIPT) && npm ci --silent
	@touch $@

.PHONY: sdk-typescript
sdk-typescript: $(TYPESCRIPT)/node_modules/.installed setup ## build the npm package in build/sdk/
	rm -rf $(TYPESCRIPT)/dist $(TYPESCRIPT)/src/gen
	cd $(TYPESCRIPT) && $(CURDIR)/$(BIN)/buf generate
	{ printf 'export default '; cat cart_grpc/client/service_config.json; } >$(TYPESCRIPT)/src/gen/service_config.ts
	cp LICENSE $(TYPESCRIPT)/
	cd $(TYPESCRIPT) && npx tsc
	@mkdir -p $(SDK)
	cd $(TYPESCRIPT) && npm pack --silent --pack-destination $(CURDIR)/$(SDK)

.PHONY: sdk
sdk: sdk-typescript dist ## build the packages for Python and for TypeScript

SDK_PACKAGES := chromium golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev protoc-gen-go protoc-gen-go-grpc \
	protobuf-compiler default-jdk-headless libgrpc-java protobuf-compiler-grpc-java-plugin libprotobuf-java libnetty-java \
	libperfmark-java libgoogle-gson-java libgeronimo-annotation-1.3-spec-java
.PHONY: sdk-packages
sdk-packages:
	@if dpkg --status $(SDK_PACKAGES) >/dev/null 2>&1; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $(SDK_PACKAGES); \
	else echo "make: these tests need Debian's packages; install them with: sudo apt-get install $(SDK_PACKAGES)" >&2; exit 2; fi

.PHONY: sdk-check
sdk-check: sdk-packages sdk-typescript $(SDK_STAMP) ## test the clients in TypeScript, Go and Java, and Envoy with a browser
	$(PYTEST) -m sdk -n 2 --dist loadfile --no-loadscope-reorder tests/sdk $(PYTEST_ARGS)

CONTRACT := tests/contract
CONTRACT_STAMP := $(VENV)/.contract-installed
$(CONTRACT_STAMP): $(STAMP)
	$(call install,dev$(comma)contract)
	@touch $@

$(CONTRACT)/node_modules/.installed: $(CONTRACT)/package.json $(CONTRACT)/package-lock.json
	cd $(CONTRACT) && npm ci --silent
	@touch $@

.PHONY: contract-check
contract-check: $(CONTRACT_STAMP) $(CONTRACT)/node_modules/.installed ## check the OpenAPI document with linters, and the simulator against it
	$(PYTEST) -m contract $(CONTRACT) $(PYTEST_ARGS)

.PHONY: sync-client
sync-client: setup ## make the synchronous client and its tests from the asynchronous ones
	$(BIN)/python -m tools.sync_client .

.PHONY: sync-client-current
sync-client-current: setup ## fail if the synchronous client does not match the asynchronous one
	$(BIN)/python -m tools.sync_client . --check

.PHONY: release-image
release-image: setup ## save protos/ as the release that buf breaking compares with
	$(BIN)/buf build protos --exclude-source-info -o $(RELEASE)

.PHONY: constraints
constraints: setup ## pin the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra bench --extra contract --extra deploy --extra docs --extra fuzz --extra release --extra sdk --universal --upgrade --no-annotate --no-header --quiet -o constraints.txt

.PHONY: image
image: ## build the container image, as cart-grpc:VERSION
	docker build --tag $(IMAGE):$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) .

.PHONY: clean
clean: ## remove the files of all other targets
	rm -rf $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist $(TYPESCRIPT)/src/gen $(TYPESCRIPT)/LICENSE
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find cart_grpc generated tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
