# make demo   environment, install, then the main job on real data, end to end (KEEP=1 leaves it running)
# make test   environment, install, lint, types, then every test
# make lint   ruff and mypy only
# make bench  the benchmarks behind docs/benchmarks.md (about an hour on two cores)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=

.PHONY: demo test lint bench peers clean

demo: $(INSTALLED)
	$(BIN)/dicomnode demo $(if $(KEEP),--keep)

test: $(INSTALLED) peers lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dicomnode pipelines model_zoo db tests benchmarks

bench: $(INSTALLED) peers
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.reconstruction

peers:
	.ci/debian-packages

# torch first, alone: whatever is installed after it then finds a build that is there and pulls no other.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
