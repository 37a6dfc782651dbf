# make demo [IMAGE=photo.jpg]   set up and segment a photo (or a drawn scene) into out/; what is
#                               there already is replaced with FORCE=1 only
# make test [DATA=dir]          set up and run the tests
# make lint                     ruff and mypy
# make sanitize                 CPU kernels and threads under GCC's sanitizers
# make mutants [MUTANTS=options]  plant the kept faults; MUTANTS=--changed for what differs from main
# make bench [DATA=dir]         CPU benchmarks on this machine
# make bench-compare [DATA=dir] the same, held against the committed results by ratios
# make gpu                      GPU tests, then GPU benchmarks, with the Python at hand
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA_OPTION := $(if $(DATA),--data $(DATA))

.PHONY: demo test lint sanitize mutants bench bench-compare gpu clean

demo: $(VENV)/.installed
ifdef IMAGE
	$(BIN)/fastscnn segment "$(IMAGE)" -o out$(if $(FORCE), --force)
else
	$(BIN)/fastscnn demo -o out
endif

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests $(DATA_OPTION) $(PYTEST_OPTIONS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(VENV)/.installed
	tests/kernels/cpu/sanitize.sh $(BIN)/python
	$(BIN)/python -m pytest -m slow tests/kernels/cpu/test_cpu_threads.py

mutants: $(VENV)/.installed
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

bench: $(VENV)/.installed
	$(BIN)/python -m pytest bench --benchmark-only $(DATA_OPTION) $(PYTEST_OPTIONS)

bench-compare: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python -m pytest bench/test_cpu.py --benchmark-only --benchmark-json=build/bench.json \
		$(DATA_OPTION) $(PYTEST_OPTIONS)
	$(BIN)/python bench/compare.py build/bench.json

clean:
	rm -rf build $(VENV) fastscnn_kernels/_C*.so

SOURCES := $(shell find csrc -type f 2>/dev/null)

$(VENV)/.packages: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.installed: $(VENV)/.packages pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps -e .
	touch $@

# On a machine with an NVIDIA GPU whose Python has torch and Triton; needs no network.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) bench/gpu_run.py $(DATA_OPTION) $(if $(COMMIT),--commit $(COMMIT))
