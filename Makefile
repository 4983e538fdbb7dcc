# One command each: `make demo`, `make test`, `make check`, `make docs-html`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
# One known torch keeps the tests comparable; `make TORCH=torch ...` takes the newest.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/demo
ifeq ($(shell uname -s),Linux)
SCREEN := xvfb-run -a -s '-screen 0 1600x1000x24'
endif

.PHONY: demo test check docs docs-html bench display clean

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

test: $(STAMP) display
	$(SCREEN) $(BIN)/python -m pytest $(ARGS)

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

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

clean:
	rm -rf $(VENV) out build dist
