# One command each: `make demo`, `make test`, `make check`, `make docs-html`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
# One known torch keeps the tests comparable; `make TORCH=torch ...` takes the newest.
TORCH ?= torch==2.13.0
# what else pip is to install or to keep to, and which of pyproject.toml's groups
ALSO ?=
GROUP ?= dev
# the viewer's Qt, another of its groups: pyside6, or pyqt6, which the extra `all` brings; each in an environment of its own
QT ?= pyside6
# of `make test-new`
NEW_PYTHON ?= python3.13
NEW := "spatialdata>=0.8" "anndata>=0.13" "ome-zarr>=0.21" "zarr>=3.4"
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/demo
# `make mutation MODULE=...`: one of the files in .ci/mutation
MODULE ?= edits
ifeq ($(shell uname -s),Linux)
SCREEN := xvfb-run -a -s '-screen 0 1600x1000x24'
endif

.PHONY: demo test test-all test-new test-lowest check docs docs-html bench mutation display clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[train]" $(ALSO) --group $(GROUP) --group $(QT)
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/stmdit demo --output $(OUT)

display:
	@bash .ci/display

# a process a core, up to four: each holds torch and a viewer, and uses its own core alone; further ones find the package compiled
test: $(STAMP) display
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(SCREEN) $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

# with every row, seed and page: what GitHub runs each night
test-all: override ARGS += -m ""
test-all: test

# today's Python, SpatialData, AnnData, OME-Zarr and zarr, in an environment of their own; without what takes long
test-new:
	$(MAKE) test PYTHON=$(NEW_PYTHON) VENV=.venv-new TORCH=torch GROUP=test ALSO='$(NEW)' ARGS='-m "not nightly and not slow" $(ARGS)'

# the lowest versions that pyproject.toml allows of what it names, in an environment of their own
test-lowest: out/lowest.txt
	$(MAKE) test VENV=.venv-lowest GROUP=test ALSO="--constraint $<" ARGS="tests/tissue tests/expression tests/synthesis $(ARGS)"

out/lowest.txt: pyproject.toml
	mkdir -p out
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	echo "$(TORCH)" | .venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra train --group test --group $(QT) \
		--python .venv-lowest/bin/python --output-file $@ pyproject.toml -

check: $(STAMP)
	$(BIN)/ruff check src tests docs benchmarks
	$(BIN)/ruff format --check src tests docs benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m sphinx -b html -n -W --keep-going -q docs out/docs

# every warning is an error; nothing is fetched
docs-html: $(STAMP)
	$(BIN)/python -m sphinx -b html -n -W --keep-going -q docs out/docs

# the pictures of the documentation
docs: $(STAMP) display
	$(SCREEN) $(BIN)/python docs/screenshots.py
	$(BIN)/python docs/guidance_grid.py
	$(BIN)/python docs/edited_tissue.py
	$(BIN)/python docs/example.py

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# hours: every mutant of a module runs the module's tests; survivors are listed in out/mutation
mutation: $(STAMP)
	$(BIN)/python -m pip install --quiet "cosmic-ray==8.7.0"
	mkdir -p out/mutation
	$(BIN)/cosmic-ray baseline .ci/mutation/$(MODULE).toml
	$(BIN)/cosmic-ray init --force .ci/mutation/$(MODULE).toml out/mutation/$(MODULE).sqlite
	$(BIN)/cr-filter-operators out/mutation/$(MODULE).sqlite .ci/mutation/$(MODULE).toml
	$(BIN)/cosmic-ray exec .ci/mutation/$(MODULE).toml out/mutation/$(MODULE).sqlite
	$(BIN)/cr-report --surviving-only --show-diff out/mutation/$(MODULE).sqlite | tee out/mutation/$(MODULE).txt

clean:
	rm -rf $(VENV) .venv-new .venv-lowest out build dist
