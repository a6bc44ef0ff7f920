# make env | dev | demo | test | lint | docs | nightly        (CORES=2 make demo limits the cores)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: env dev demo test lint docs nightly lock

BIN := .venv/bin
UV := $(shell command -v uv || echo .uv/bin/uv)
UV_VERSION := 0.13.9
CORES ?= all
export PATH := $(CURDIR)/$(BIN):$(PATH)

demo: env            ## the whole pipeline on the embedded dataset, to results/shapes/report.html
	snakemake --cores $(CORES)
	echo "Look at results/shapes/report.html"

env: $(BIN)/.installed   ## .venv from the hash-checked lock file; needs no compiler

dev: $(BIN)/.installed-dev   ## the same with the tools of development; needs a C++ compiler

test: $(BIN)/.installed-dev
	pytest -n $(shell env -u OMP_NUM_THREADS nproc) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --durations=12

lint: $(BIN)/.installed-dev
	ruff check .
	ruff format --check .
	snakefmt --check workflow
	mypy
	pytest --collect-only -qq >/dev/null || { pytest --collect-only -q | tail -n 30; exit 1; }
	snakemake --lint

docs: $(BIN)/.installed-dev      ## the documentation, to site/index.html; fetches nothing
	NO_MKDOCS_2_WARNING=true mkdocs build --quiet
	echo "Look at site/index.html; its search wants a server (python -m http.server --directory site)"

nightly: $(BIN)/.installed-dev   ## dozens of kills at random moments and Slurm's time limit, an hour; KILLS=100 for more
	BECO_KILLS=$(or $(KILLS),24) pytest -s tests/workflow/test_kills.py tests/workflow/test_slurm.py

COMPILE := pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --no-annotate --custom-compile-command "make lock" pyproject.toml
lock: .uv-there      ## after a change of the dependencies in pyproject.toml; UPGRADE=--upgrade for newer versions
	$(UV) $(COMPILE) $(UPGRADE) --extra build --extra weights --extra workflow -o requirements.lock
	$(UV) $(COMPILE) --extra dev --constraint requirements.lock -o requirements-dev.lock

$(BIN)/.installed: requirements.lock pyproject.toml | .uv-there
	$(call install,requirements.lock)

$(BIN)/.installed-dev: requirements-dev.lock pyproject.toml | .uv-there
	command -v c++ >/dev/null || { echo "c++: no such compiler; the tests compare with pydensecrf, which needs one (apt-get install g++)"; exit 1; }
	$(call install,requirements-dev.lock)
	touch $(BIN)/.installed

define install
[ -x $(BIN)/python ] || $(UV) venv --python '>=3.11,<3.14' .venv
$(UV) pip sync --python $(BIN)/python --require-hashes $(1)
$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
touch $@
endef

.PHONY: .uv-there
.uv-there:           # uv itself, where it is missing; a python3 of uv's own environments has no pip to fetch it with
	@command -v $(UV) >/dev/null && exit
	for python in $$(type -aP python3); do
	  $$python -c "import pip" 2>/dev/null || continue
	  $$python -m pip install --quiet --target .uv uv==$(UV_VERSION)
	  exit
	done
	echo "uv: not installed, and no python3 with pip to fetch it with; install one (pip install uv, apt-get install python3-pip)"
	exit 1
