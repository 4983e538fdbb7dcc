# One command each: `make demo`, `make test`, `make check`, `make docs-html`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
# One known torch keeps the tests comparable; `make TORCH=torch ...` takes the newest.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/demo
# `make mutation MODULE=...`: one of the files in .ci/mutation
MODULE ?= edits
ifeq ($(shell uname -s),Linux)
SCREEN := xvfb-run -a -s '-screen 0 1600x1000x24'
endif

.PHONY: demo test test-all check docs docs-html bench mutation display clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[all,train]" --group dev
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
	rm -rf $(VENV) out build dist
