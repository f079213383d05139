# `make help` lists what there is. Every target that needs an environment makes it first.
# Needs: make, a POSIX shell, Python 3.11 or newer. Choose the interpreter: make PYTHON=python3.12

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?=
# Test processes. Two is what CI has; with more cores: make test JOBS=8
JOBS ?= 2

BIN := .venv/bin
THIN := .venv-thin/bin
# What `make check` runs of the tests: the parts that need seconds.
FAST := tests/*.py tests/models tests/runtime tests/cli tests/export/analysis tests/export/graph \
	tests/export/source
SOURCES := export models runtime serve cli tests tools examples bench

# One thread per test process: two of them with a pool each are slower than without.
# Tests never reach for the network; this makes a library that tries fail at once.
# Bytecode is kept: many tests start processes, and each would compile the sources again.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# Steps of one process each, such as mypy, run beside others; where make can, each says what it has to
# say at its end.
GROUPED := $(if $(filter output-sync,$(.FEATURES)),--output-sync)
BESIDE = $(MAKE) --no-print-directory --jobs=2 $(GROUPED)

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup:  ## Make .venv from requirements.lock (the other targets do this themselves)
	@python=$$(sh tools/find_python.sh "$(PYTHON)") && \
	"$$python" tools/make_env.py .venv requirements.lock --editable

.PHONY: demo
demo: setup  ## A checkpoint to text; export, prove, train, stream without PyTorch; writes build/demo/report.html
	@$(BIN)/python -m examples.demo

.PHONY: serve-demo
serve-demo: setup  ## Serve a trained model without PyTorch, stream from it by OpenAI's client, and a page
	@$(BIN)/python -m examples.serving

.PHONY: test
test: setup  ## Everything CI runs
	+@$(BESIDE) lint test-thin test-clients
	@echo "== all tests"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS)

.PHONY: check
check: setup  ## Format, style, types and the fast tests: for daily work
	+@$(BESIDE) lint fast

.PHONY: fast
fast: setup  # the part of the tests that needs seconds
	@echo "== fast tests"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow" $(FAST)

.PHONY: test-clients
test-clients: setup  # what the tests of the clients need; they are skipped where it cannot be had
	@$(BIN)/python -m examples.clients --prepare

.PHONY: test-thin
test-thin: setup  ## The runtime's tests where only numpy and onnxruntime are installed
	@python=$$(sh tools/find_python.sh "$(PYTHON)") && \
	"$$python" tools/make_env.py .venv-thin requirements-thin.lock
	@echo "== tests of the runtime, from a wheel, without PyTorch"
	@rm -rf build/thin
	@$(BIN)/python -m pip --quiet wheel --no-deps --no-build-isolation --wheel-dir build/thin .
	@$(THIN)/python -m pip --quiet install --no-deps --force-reinstall build/thin/*.whl
	@$(TEST_ENV) $(THIN)/python -m pytest -q -p no:cacheprovider tests/runtime tests/cli

.PHONY: lint
lint: setup  ## Check format, style, spelling and types
	@echo "== ruff"
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/codespell
	@echo "== mypy --strict"
	@$(BIN)/mypy

.PHONY: format
format: setup  ## Format the code and mend what ruff can
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

.PHONY: docs
docs: setup  ## The documentation's site; writes build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

.PHONY: bench
bench: setup  ## Time modules and language models against their peers; writes bench/README.md
	@$(BIN)/python -m bench.whole

.PHONY: examples
examples: setup  ## Export bundles, run the clients of every language on them; prints a table
	@$(BIN)/python -m examples.clients

SUITES := build/suites/env/bin
# A Triton, and what our runtime needs in it: its Python backend was built for numpy 1.
TRITON := nvidia-pytriton==0.7.0 numpy==1.26.4 onnxruntime==1.32.0

.PHONY: suites
suites: setup  ## Judge the server by suites that are not ours, and run it on Ray and in Triton
	@python=$$(sh tools/find_python.sh "$(PYTHON)") && \
	"$$python" tools/make_env.py build/suites/env requirements-suites.lock --editable
	@$(SUITES)/python -m pip install --quiet --no-deps --upgrade --target build/suites/triton $(TRITON) || \
	echo "Triton cannot be had here; its tests are skipped"
	@rm -rf build/suites/stories
	@$(BIN)/causal-onnx export tests/data/real/baby105 -o build/suites/stories --adaptable '*.q_proj'
	@$(TEST_ENV) $(SUITES)/python -m pytest -q -o filterwarnings=default --disable-warnings tests/suites

.PHONY: zoo
zoo: setup  ## Every module of tests/zoo through export and attest; writes docs/zoo.md
	@$(BIN)/python -m tools.zoo

.PHONY: fuzz
fuzz: setup  ## Hostile and mutated files, graphs, messages and kills; figures in docs/safety.md
	@$(BIN)/python -m tools.fuzz --files 20000
	@$(BIN)/python -m tools.fuzz --hostile 5000
	@$(BIN)/python -m tools.fuzz.differential --messages 1000000
	@$(BIN)/python -m tools.fuzz.kills --count 300

.PHONY: lock
lock: setup  ## Resolve requirements*.in into the lock files (the only target that changes pins)
	@$(BIN)/python tools/lock.py

.PHONY: clean
clean:  ## Remove both environments, caches and everything built
	rm -rf .venv .venv-thin build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf examples/*/node_modules examples/*/dist
	find export models runtime serve cli tests tools examples bench -name __pycache__ -prune -exec rm -rf {} +
