# Every target works on a fresh clone: it sets up what it needs first, and only if that changed.
# Pass flags with ARGS:  make run ARGS="--retention 3d"   make test ARGS="-k filters -x"

BIN := .venv/bin
READY := .venv/.ready
# The site has tools of its own, which nothing else needs.
DOCS_VENV := .venv-docs
DOCS_BIN := $(DOCS_VENV)/bin
DOCS_READY := $(DOCS_VENV)/.ready
ARGS ?=
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-emit-index-url --custom-compile-command "make lock" $(ARGS)

export PYTHON

# Installs the package from the registries, as the image does: 13 s. So it is not a part of `make test`.
IMAGE_TESTS := tests/test_packaging.py::TestImage

.DEFAULT_GOAL := help
# Half as many again as cores: many tests wait for something now and then.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 3 / 2)

# The suites start hundreds of Python processes. Each would compile our modules, where the environment says
# that nothing compiled is to be kept.
test test-integration soak soak-cluster soak-mutants: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup run test test-integration lint format bench dictionary dashboard charts attack soak soak-cluster soak-mutants up down logs up-cluster down-cluster docker-engine dist docs lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) \
	  | awk -F ':.*## ' '{ printf "make %-16s %s\n", $$1, $$2 }'

setup: $(READY) ## Create .venv from the lock file (PYTHON=... chooses another Python)
	@echo "setup: .venv is up to date"

$(READY): requirements-dev.lock pyproject.toml scripts/setup
	@scripts/setup
	@touch $@

run: $(READY) ## Start the server: ws://localhost:6008/subscribe
	@$(BIN)/jetstream serve $(ARGS)

test: $(READY) ## Run the test suite on all cores: under four minutes
	@echo "test: running the suite with pytest"
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal --deselect $(IMAGE_TESTS) $(ARGS)

test-integration: $(READY) ## Test with programs of other projects: clients, a browser, databases, proxies; commands; load; kills; the image
	@$(BIN)/pytest tests/foreign tests/processes tests/load tests/crash $(IMAGE_TESTS) $(ARGS)

lint: $(READY) ## Check style, import directions and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## Run the benchmarks and print their figures
	@$(BIN)/python -m benches $(ARGS)

dictionary: $(READY) ## Make our zstd dictionary from simulated traffic (a changed one needs ARGS="--id 20270131")
	@$(BIN)/python scripts/train_dictionary.py $(ARGS)

dashboard: $(READY) ## Make the Grafana dashboard from the table in scripts/make_dashboard.py
	@$(BIN)/python scripts/make_dashboard.py

charts: $(READY) ## Make the charts in docs/images/ from docs/benchmarks.json and docs/peers.json
	@$(BIN)/python -m scripts.make_charts

attack: $(READY) ## Flood a server as clients, accounts and a relay can, and check its limits
	@$(BIN)/python -m benches.attack $(ARGS)

soak: $(READY) ## Run the long tests: 200 kills under load, memory, and 300 s of each fuzzer
	@$(BIN)/pytest tests/crash tests/soak --kills=200 --timeout=3600 $(ARGS)
	@$(BIN)/pytest --numprocesses auto tests/fuzz --fuzz-seconds=300 --timeout=3600 $(ARGS)

soak-cluster: $(READY) ## Break everything in a cluster, ten times each, under readers (SOAK_SEED=7 repeats a run): 20 minutes
	@$(BIN)/pytest tests/soak_cluster/test_full.py -s $(ARGS)

soak-mutants: $(READY) ## See that this soak fails without the fence, the predecessor check, the nonce, the erasure revision
	@$(BIN)/pytest tests/soak_cluster/test_mutants.py -s $(ARGS)

up: docker-engine ## Build the image and start it with Docker Compose
	docker compose up --build --detach --wait $(ARGS)
	@echo "up: http://localhost:6008  ws://localhost:6008/subscribe  http://localhost:6008/metrics"

down: docker-engine ## Stop what `make up` started; keep the data volume
	docker compose down $(ARGS)

logs: docker-engine ## Show the log of what `make up` started (ARGS="--tail 100" for its end)
	docker compose logs --follow $(ARGS)

up-cluster: docker-engine ## Start PostgreSQL with a standby, two ingests, three edges and a load balancer
	docker compose --file docker-compose.cluster.yaml up --build --detach --wait $(ARGS)
	@echo "up-cluster: http://localhost:6008  ws://localhost:6008/subscribe"

down-cluster: docker-engine ## Stop what `make up-cluster` started; keep the data volumes
	docker compose --file docker-compose.cluster.yaml down $(ARGS)

docker-engine:
	@docker info >/dev/null 2>&1 || { echo "$(MAKECMDGOALS): cannot connect to a Docker engine." \
	  "Start Docker, or point DOCKER_HOST at one. Without Docker: make run" >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { echo "$(MAKECMDGOALS): Docker has no compose" \
	  "command. Install its plugin (Debian, Ubuntu: docker-compose-plugin)" >&2; exit 1; }

dist: $(READY) ## Build the wheel and the sdist: the same bytes for the same commit
	@rm -rf dist
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build $(ARGS)
	@cd dist && sha256sum -- * | tee SHA256SUMS

docs: $(DOCS_READY) ## Build the documentation as a site, in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "docs: build/site/index.html"

$(DOCS_READY): requirements-docs.lock
	@$${PYTHON:-python3} -m venv --clear $(DOCS_VENV)
	@$(DOCS_BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements-docs.lock
	@touch $@

lock: ## Update the lock files (needs uv; ARGS=--upgrade takes newer versions)
	@uv --version >/dev/null 2>&1 || { echo "lock: needs uv (pip install uv)" >&2; exit 1; }
	$(COMPILE) pyproject.toml --group dev --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --extra postgresql --constraint requirements-dev.lock --output-file requirements.lock
	$(COMPILE) --group build --constraint requirements-dev.lock --output-file requirements-build.lock
	$(COMPILE) --group docs --output-file requirements-docs.lock

clean: ## Remove .venv, caches and builds; keep data/
	rm -rf .venv $(DOCS_VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
