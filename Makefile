# make demo        environment, install, then the main job on real data, end to end (KEEP=1 leaves it running)
# make test        environment, install, lint, types, then every test
# make test-fast   the tests that use no other program: 2 minutes on two cores
# make lint        ruff and mypy only
# make coverage    the fast tests with their coverage; fails below the floor of pyproject.toml
# make mutate      change decisive modules expression by expression; the tests have to notice (docs: tests/mutation.py)
# make fuzz        odd and broken input of every kind that strangers send, for MINUTES=10 in all (docs: tests/fuzz/__init__.py)
# make simulate    the whole node under faults of disk, database, network and process, TRIALS=300 (docs/explanation/simulator.md)
# make docs        the documentation site in build/docs, from the code as it is; a warning is an error
# make bench       the benchmarks behind docs/benchmarks.md (about an hour on two cores)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
PYTEST_ARGS ?=
PROCESSES ?= 2
MINUTES ?= 10
TRIALS ?= 300
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast lint coverage mutate fuzz simulate docs bench peers viewer clean

demo: $(INSTALLED) viewer
	$(BIN)/dicomnode demo $(if $(KEEP),--keep)

test: $(INSTALLED) peers viewer lint
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(INSTALLED)
	$(PYTEST) -m fast $(PYTEST_ARGS)

coverage: $(INSTALLED)
	$(PYTEST) -m fast --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

mutate: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation

# atheris has no wheels for some machines; without it, Hypothesis alone makes the input.
fuzz: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --constraint constraints.txt atheris || echo "atheris is left out"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

simulate: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.simulation --trials $(TRIALS)

docs: $(DOCS_INSTALLED)
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs build/docs
	@echo "the documentation is in build/docs/index.html"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dicomnode pipelines model_zoo db tests benchmarks examples docs

CLASSICAL := --method zero --method cg --method l1 --method total --method bart --method unrolled
OURS := --method "ours: DDS posterior mean" --method "dds: one"
KEPT := --method "ours: DDS posterior mean, samples kept"
SAMPLERS := --slices 1 --acceleration 4 --method zero --method "dds: one" --method "dps: one" --method "score_mri: one"
TABLE := $(BIN)/python -m benchmarks.reconstruction

# Every table of docs/benchmarks.md in its order; each has a store of its own, since a stored row is not measured again.
bench: $(INSTALLED) peers
	$(BIN)/python -m benchmarks.unrolled train --resume
	$(TABLE) --set faults --slices 1 --method "ours: delivered" --store build/benchmarks/sd.json
	$(TABLE) --set faults --subject 13 --slices 1 $(CLASSICAL) --method "ours: delivered" --store build/benchmarks/faults.json
	$(TABLE) --set patterns --subject 13 --slices 1 --method "ours: delivered" --method "bart total" --method unrolled --store build/benchmarks/patterns.json
	$(BIN)/python -m benchmarks.folding
	$(TABLE) --set simulated --slices 1 $(CLASSICAL) --method "ours: DDS posterior mean" --method "ours: delivered" --store build/benchmarks/simulated-delivered.json
	$(TABLE) --set real --patient 6B --patient S6A --acceleration 2 --acceleration 4 --slices 1 --method "ours: delivered" --store build/benchmarks/real-sd.json
	$(TABLE) --set simulated $(CLASSICAL) $(OURS) --store build/benchmarks/simulated.json
	$(TABLE) --set simulated $(SAMPLERS) --method ours --method cg --method "dds: mean" --method "ald: one" --store build/benchmarks/samplers.json
	$(TABLE) --set real $(SAMPLERS) $(KEPT) --method "ours: delivered" --store build/benchmarks/real-samplers.json
	$(TABLE) --set real $(CLASSICAL) $(KEPT) --store build/benchmarks/real.json
	$(TABLE) --set real --acceleration 2 --acceleration 3 --acceleration 4 --method adadiff --method "ours: DDS posterior mean, samples kept exactly" --store build/benchmarks/adadiff.json
	$(BIN)/python -m benchmarks.ct_reconstruction
	$(BIN)/python -m benchmarks.pet_unet
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.reconstruction_parts
	$(BIN)/python -m benchmarks.real_dir
	$(BIN)/python -m benchmarks.real_longitudinal
	$(BIN)/python -m benchmarks.ingest

# OHIF's prebuilt files come from its npm package, where there is npm; without them the node has everything but /viewer.
viewer: $(INSTALLED)
	@$(BIN)/dicomnode viewer install || echo "the viewer is left out"

peers:
	.ci/debian-packages

# torch first, alone: whatever is installed after it then finds a build that is there and pulls no other.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
