# Everything sets itself up: only Python 3.11, a C++ compiler and make are needed.
PYTHON ?= python3.11
MODEL ?= resnet18
BUDGET ?= 10m
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
# AutoTVM is a part of TVM up to 0.19: a `tvm` as well, so its tests have an environment of their own.
OLD_VENV := .venv-autotvm
OLD_READY := $(OLD_VENV)/.ready

# Compiled modules are kept: without them every process compiles TVM and PyTorch again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: tune test test-autotvm check docs format clean

# Tune a network (ResNet-18) for this machine, then time it beside untuned TVM and ONNX Runtime. Run again: it resumes.
tune: $(READY)
	$(BIN)/chameleon tune $(MODEL) --time-budget $(BUDGET)
	$(BIN)/chameleon bench $(MODEL)

# Everything: lint, types, layers, fast tests, then the tests that tune with the real TVM, then with the real AutoTVM.
# While the solvers are compiled on one core, the other one makes the environment of AutoTVM. A process without tests
# left takes half of those that the other one still has.
test: $(INSTALLED)
	$(MAKE) -j 2 $(READY) $(OLD_READY)
	$(MAKE) check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "tvm or slow" tests
	$(MAKE) test-autotvm

# The tests of the AutoTVM host, on TVM 0.19.
test-autotvm: $(OLD_READY)
	$(OLD_VENV)/bin/python -m pytest -n 2 --dist worksteal -m autotvm tests/autotvm

# What to run before a commit. The tests run in two processes; numerical libraries that start two threads in each stand in line.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	$(MAKE) docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not tvm and not autotvm and not slow" tests

# The pages as a site, in site/. A link to nothing is an error. The variable silences an advertisement.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Of the 15,000 modules few are ever imported, so none is compiled before it is.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[all,dev]"
	touch $@

$(READY): $(INSTALLED)
	$(BIN)/python -c "from chameleon.serenity.arena import exact; from chameleon.serenity.order import compiled; compiled.load(); exact.load()"  # compiles
	touch $@

$(OLD_READY): pyproject.toml constraints-autotvm.txt
	$(PYTHON) -m venv $(OLD_VENV)
	$(OLD_VENV)/bin/python -m pip install --quiet --no-compile -c constraints-autotvm.txt -e ".[autotvm,test]"
	touch $@

clean:
	rm -rf $(VENV) $(OLD_VENV) build dist site *.egg-info
