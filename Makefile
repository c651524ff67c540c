# A newcomer needs Python 3.11+ with venv, and make: each target sets up what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEMO_READY := $(VENV)/demo-ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" --output-file
# One for each second that a command takes, whose status stays the line's.
DOTS := & pid=$$!; while kill -0 $$pid 2>/dev/null; do printf .; sleep 1; done; echo; wait $$pid
# On two cores beside three others a server may be too slow for a test; alone it is not. STRICT=1: no second try.
ALONE = { [ $$? = 1 ] && [ "$$STRICT" != 1 ] && echo "== FAILED BESIDE OTHERS, now alone ==" && \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

.PHONY: $(shell sed -nE 's/^([a-z]+):.*## .*/\1/p' $(MAKEFILE_LIST))

help: ## show the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(DEMO_READY) ## watch tokens stay fresh in a real OpenBao, about a minute (DEMO_SECONDS=0: until Ctrl-C)
	@$(BIN)/python -m sandbox.demo

test: $(READY) lint ## all that CI runs; STRICT=1: what could not run is a failure
	@$(BIN)/coverage run -m pytest tests/unit
	@$(BIN)/coverage report --fail-under=100
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/simulation
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --ignore tests/unit --ignore tests/simulation || $(ALONE)

fuzz: $(READY) ## hostile input and hostile servers, the long form (FUZZ_MINUTES=10); writes docs/evidence/fuzz.md
	@$(BIN)/python -m tests.fuzz

licences: $(READY) ## the licence of each thing that the worker brings along
	@$(BIN)/python -m tests.trust.licences

lint: $(READY) ## style, types, imports between the modules, spelling, dependencies, YAML and workflows
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell
	@$(BIN)/deptry worker
	@$(BIN)/yamllint --strict -d '{extends: relaxed, ignore: [templates/], rules: {line-length: disable}}' .github config examples helm
	@$(BIN)/zizmor --offline --quiet .github

chart: $(READY) ## write the schema and the table of the chart's values, and test the chart with the real Helm engine
	@$(BIN)/python -m tests.chart.schema
	@$(BIN)/python -m tests.chart.table
	@$(BIN)/python -m pytest tests/chart

alerts: $(READY) ## each alert on a real Prometheus, and what each screen says meanwhile, about 10 minutes; writes docs/evidence/alerts.md
	@$(BIN)/python -m tests.alerts.report $(ROWS)

image: $(READY) ## build the image by buildah from a base that debootstrap makes, and refresh an account in it
	@$(BIN)/python -m pytest -s tests/image

simulate: $(READY) ## a hundred account-years on a virtual clock (YEARS); the figures go to docs/evidence/simulation.md
	@$(BIN)/python -m tests.simulation.report $(YEARS)

chaos: $(READY) ## every fault on real processes, then half an hour (PARTITION_MINUTES) of networks that part; into docs/evidence/chaos.md
	@$(BIN)/python -m pytest tests/chaos --long

bench: $(READY) ## beside the floor: refreshes per CPU second, memory, start; half an hour, into docs/evidence/performance.md
	@$(BIN)/python -m benchmarks

soak: $(READY) ## 30 minutes (SOAK_MINUTES) of faults with 200 accounts; the figures go to docs/evidence/soak.md
	@$(BIN)/python -m tests.chaos.soak

mutants: $(READY) ## change worker/core in each place in turn: do the tests notice? (long; writes docs/evidence/mutation.md)
	@rm -rf mutants
	@nice $(BIN)/mutmut run --max-children 1
	@$(BIN)/python -m tests.mutants

evidence: $(READY) ## how many commits have touched what each page of docs/evidence/ measured; 1 if any has
	@$(BIN)/python -m tests.evidence

screenshots: $(READY) ## pictures of the status page and of --status, by Chromium; into docs/images
	@$(BIN)/python -m sandbox.screenshots

dist: $(READY) ## wheel and sdist, into dist/: the same bytes from the same commit
	@$(BIN)/python -m hatchling build --clean

lock: $(READY) ## write requirements/ anew from pyproject.toml
	@$(LOCK) requirements/runtime.txt pyproject.toml
	@$(LOCK) requirements/dev.txt --group dev pyproject.toml
	@$(LOCK) requirements/demo.txt --group demo --constraint requirements/dev.txt pyproject.toml
	@$(LOCK) requirements/build.txt --group build

lowest: $(READY) ## unit tests with the oldest libraries that pyproject.toml allows
	@$(BIN)/uv pip compile --quiet --upgrade --resolution lowest-direct --python $(BIN)/python \
		--output-file $(VENV)/lowest.txt pyproject.toml
	@$(BIN)/uv run --quiet --isolated --no-project --python $(BIN)/python --with-requirements $(VENV)/lowest.txt \
		--with-editable . --with aiohttp,greenlet,hypothesis,pytest,pytest-socket,trustme python -m pytest tests/unit

clean: ## remove what the other targets made
	rm -rf $(VENV) .coverage dist mutants .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(DEMO_READY): requirements/demo.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "appjwt-worker needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing: install the package python3-venv"; exit 1; }
	@echo "setting up $(VENV), once: about 300 MB"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --require-hashes --requirement requirements/demo.txt $(DOTS)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(READY): $(DEMO_READY) requirements/dev.txt
	@echo "adding what the tests need, once: about 600 MB"
	@$(PIP) --require-hashes --requirement requirements/dev.txt $(DOTS)
	@touch $@
