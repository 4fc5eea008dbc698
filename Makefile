# `make demo` and `make test` each do everything from a fresh clone: a virtual environment, the install, the work.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
REAL_DATA ?=

.PHONY: demo test slow install prepare clean

install: $(VENV)/installed

$(VENV)/installed: settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/hpa_fastai demo --out demo --force

# Notebooks and tests wait for clocks, servers and other processes much of the time: half as many again as cores.
JOBS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$(( cores > 5 ? 8 : (3*cores + 1)/2 )))

# Each command gets a folder for its temporary files and caches, removed at its end: all together they fill a disk.
# A thread each: more of them only wait for one another. One arena of memory: each notebook runs in a thread of its own,
# and the C library would keep what each of these has freed.
SCRATCH = scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && mkdir "$$scratch/cache" && \
	export TMPDIR="$$scratch" XDG_CACHE_HOME="$$scratch/cache" OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1 \
	MALLOC_ARENA_MAX=1 &&

test: install
	$(SCRATCH) PATH="$(abspath $(BIN)):$$PATH" nbdev_test --timing --n-workers $(JOBS)
	$(SCRATCH) $(BIN)/python -m pytest -q --numprocesses=$(JOBS) --dist=worksteal --durations=10 $(if $(REAL_DATA),"--real-data=$(REAL_DATA)")

# Trainings and runs that are killed and go on, several times over: for a change of what they protect.
slow: install
	$(SCRATCH) $(BIN)/python -m pytest -q -m slow $(if $(REAL_DATA),"--real-data=$(REAL_DATA)")

# After an edit of a notebook: library, README and clean notebooks in one go.
prepare: install
	PATH="$(abspath $(BIN)):$$PATH" nbdev-export
	PATH="$(abspath $(BIN)):$$PATH" nbdev-clean
	$(BIN)/python -m hpa_fastai.dev.readme

clean:
	rm -rf demo build dist *.egg-info .pytest_cache
