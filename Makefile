# Every target works on a machine that has Python 3.11 to 3.14 and make; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTOS := $(shell find proto -name '*.proto' | sort)
GEN_PACKAGE := megaphone_api
LOCK := $(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
	--no-emit-package megaphone-api --no-emit-package megaphone-client --no-emit-package megaphone-operator
AUDIT := $(BIN)/uv tool run --system-certs --from pip-audit==2.10.1 pip-audit \
	--vulnerability-service osv --require-hashes --disable-pip --progress-spinner off
# More tests at a time than two cores have room for, because many tests wait most of the time.
AT_A_TIME := 4

# Compiled code is kept: each process of a test would compile the broker anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Make .venv with the locked versions of everything.

$(READY): pyproject.toml gen/pyproject.toml clients/python/pyproject.toml operator/pyproject.toml requirements.lock
	@echo "Setting up $(VENV)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else f"Python 3.11 to 3.14 is needed, this is {v[0]}.{v[1]}: try make PYTHON=python3.11 setup")'
	@$(PYTHON) -m venv $(VENV)
	@awk '/^uv==/ { found = 1 } found { print } found && !/\\$$/ { exit }' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip sync --quiet --system-certs --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --no-deps --no-build-isolation \
		-e gen -e clients/python -e operator -e .
	@touch $@

.PHONY: run
run: $(READY) ## Start the broker: HTTP on port 3000, gRPC on port 3001.
	@exec $(BIN)/megaphone serve

.PHONY: demo
demo: $(READY) ## Start a broker, and the back ends and pages of the examples; needs npm.
	@[ -e clients/typescript/dist/index.js ] || $(MAKE) --no-print-directory client-ts-build
	@exec $(BIN)/python examples/demo.py

.PHONY: test
test: $(READY) ## Run every test, four at a time. More pytest options: make test ARGS="-k read -n 0"
	$(BIN)/python -m pytest -n $(AT_A_TIME) $(ARGS)

.PHONY: coverage
coverage: $(READY) ## Run every test, and check how many branches of core, store and wire their own tests reach.
	$(BIN)/python -m tests.coverage_floor -n $(AT_A_TIME) $(ARGS)

.PHONY: check check-style check-types check-imports
check: check-types check-style check-imports proto-check docs-check ## Check format, lint, types, imports, schema and generated pages.

check-types: $(READY)
	$(BIN)/mypy

check-style: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

check-imports: $(READY)
	$(BIN)/lint-imports --no-logo

.PHONY: fix
fix: $(READY) ## Format, and repair what the linter can repair.
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

.PHONY: proto
proto: $(READY) ## Generate gen/ from proto/.
	@$(BIN)/python proto/generate.py gen
	@echo "gen/$(GEN_PACKAGE) is up to date with proto/"

.PHONY: proto-check
proto-check: $(READY) ## Check that gen/ is what proto/ generates, and lint the schema.
	@$(BIN)/python proto/generate.py --check gen
	@$(BIN)/buf lint

.PHONY: docs
docs: $(READY) ## Generate the pages of docs/ that repeat what the code says.
	@$(BIN)/python -m docs.generate
	@echo "docs/ is up to date with the code"

.PHONY: docs-check
docs-check: $(READY) ## Check that the generated pages of docs/ are what the code says.
	@$(BIN)/python -m docs.generate --check

.PHONY: test-compiled
test-compiled: $(READY) ## Run tests on the compiled wheel, which is built if the code has changed; needs gcc.
	$(BIN)/python -m tests.compiled -n $(AT_A_TIME) $(ARGS)

.PHONY: compat
compat: $(READY) ## Test against the Rust broker (0.10) and its client; needs Rust, builds them once.
	@$(BIN)/python -m tests.compat.build
	$(BIN)/python -m pytest tests/compat $(ARGS)

.PHONY: operator-e2e
operator-e2e: $(READY) ## Test the operator on a real control plane of Kubernetes; needs root, Go, etcd, nft and nginx.
	$(BIN)/python -m tests.operator_e2e $(ARGS)

.PHONY: client-ts
client-ts: ## Build the TypeScript client into an npm package below dist/, and test it; needs npm.
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory client-ts-build; \
		else echo "The TypeScript client is not built, because npm is missing"; fi

.PHONY: client-ts-build
client-ts-build:
	@cd clients/typescript && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent; }
	@cd clients/typescript && npm run --silent build && npm test --silent
	@mkdir -p dist && cd clients/typescript && npm pack --silent --pack-destination ../../dist

.PHONY: runtimes
runtimes: ## Install Deno and Bun, so that the TypeScript client is tested with them too; needs npm.
	@cd tests/clients/runtimes && npm ci --silent

.PHONY: old-broker
old-broker: $(READY) ## Build the broker 0.11.0 from the history, for the tests of clients with it.
	@$(BIN)/python -m tests.clients.old_broker

.PHONY: bench
bench: $(READY) ## Measure speed and memory beside the Rust broker (0.10), nginx and nchan, where they are.
	@$(BIN)/python -m tests.compat.build
	$(BIN)/python -m bench $(ARGS)

.PHONY: pictures
pictures: $(READY) ## Make the pictures of README.md; needs Chromium and npm, and takes two minutes.
	@[ -e clients/typescript/dist/index.js ] || $(MAKE) --no-print-directory client-ts-build
	@$(BIN)/python -m tests.pictures

.PHONY: dashboard
dashboard: $(READY) ## Make the picture of docs/alerts.md; needs Prometheus, and takes two minutes.
	@$(BIN)/python -m tests.dashboard

.PHONY: soak
soak: $(READY) ## Run readers, writers and faults for ten minutes and look for leaks.
	$(BIN)/python -m tests.soak $(ARGS)

.PHONY: build
build: $(READY) ## Build the source distribution and all wheels into dist/; needs gcc.
	@$(BIN)/python -m release dist

.PHONY: release
release: $(READY) ## Check everything and build the distributions into dist/; publishes nothing.
	@$(BIN)/python -m release ready
	@$(MAKE) --no-print-directory audit
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-compiled
	@$(BIN)/python -m release build

.PHONY: audit
audit: $(READY) ## Ask osv.dev whether a locked version has a known vulnerability; needs the internet.
	$(AUDIT) -r requirements.lock -r deploy/requirements.lock -r deploy/build-requirements.lock \
		-r operator/requirements.lock

.PHONY: lock
lock: $(READY) ## Lock the newest versions that pyproject.toml allows.
	$(LOCK) --upgrade --group dev pyproject.toml -o requirements.lock
	$(LOCK) --extra redis --extra otel --constraint requirements.lock pyproject.toml -o deploy/requirements.lock
	$(LOCK) --constraint requirements.lock --group build -o deploy/build-requirements.lock
	$(LOCK) --constraint requirements.lock operator/pyproject.toml -o operator/requirements.lock
