# make train   set up and train PPO on HalfCheetah-v5        make test    set up and run the tests
# make venv    only set up                                   make check   format, lint, types, layering, fast tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Numerical libraries fight over few cores when every process takes all of them.
export OMP_NUM_THREADS ?= 1

.PHONY: train test check format venv clean

train: venv
	$(BIN)/python launchers/train.py ppo_mujoco

PROCESSES := not slow and not gpu and processes and not compiles
# These measure.
ALONE := tests/benchmarks

test: venv
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu and (compiles or not processes)"
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "$(PROCESSES)" $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest -q -m "$(PROCESSES)" $(ALONE)

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -x -m "not slow and not gpu and not processes and not compiles"

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
