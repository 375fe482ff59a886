# Everything a newcomer needs: `make demo` and `make test`. Both make the virtual environment first, if there is none.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LOWEST := .venv-lowest
DEMO := runs/demo
DIGITS := --config configs/data/digits.yaml
PROJECTOR := --config configs/model/digits.yaml
NOISY := --config configs/data/noisy.yaml --data.init_args.val_copies 50
LIPSCHITZ := --config configs/data/digits_lipschitz.yaml
CERTIFY = $(RUN) certify.py $(DIGITS) --name demo
SLOW := faults or slurm

.PHONY: demo test test-faults test-slurm test-newcomers test-wheel test-lowest mutants fuzz lint docs test-docs figures clean

# A fit that was interrupted is started anew: only the stamp says that it ended. Results lie in runs/demo*/.
demo: $(DEMO)/.fitted $(DEMO)_lipschitz/.fitted $(DEMO)_smoothed/.fitted
	$(RUN) train.py test $(DIGITS) $(PROJECTOR) --name demo
	$(CERTIFY) --config configs/certify/digits.yaml
	$(CERTIFY) --config configs/certify/digits_clever.yaml --skip 18 --out $(DEMO)/certify/clever
	$(RUN) certify.py $(LIPSCHITZ) --config configs/certify/digits_lipschitz.yaml --name demo_lipschitz
	$(RUN) certify.py $(DIGITS) --config configs/certify/digits_votes.yaml --skip 9 --name demo_smoothed
	$(RUN) certify.py compare $(DEMO)/certify/test $(DEMO)_lipschitz/certify/test $(DEMO)_smoothed/certify/test

$(DEMO)/.fitted: | $(VENV)/.installed
	rm -rf $(DEMO)
	$(RUN) train.py fit $(DIGITS) $(PROJECTOR) --name demo
	touch $@

$(DEMO)_lipschitz/.fitted: | $(VENV)/.installed
	rm -rf $(DEMO)_lipschitz
	$(RUN) train.py fit $(LIPSCHITZ) --config configs/model/gaussians.yaml --name demo_lipschitz
	touch $@

$(DEMO)_smoothed/.fitted: | $(VENV)/.installed
	rm -rf $(DEMO)_smoothed
	$(RUN) train.py fit $(DIGITS) $(NOISY) --config configs/model/smoothed.yaml --name demo_smoothed
	touch $@

# Two processes with one thread each use two cores better than one process with two.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not ($(SLOW))"

# One line for each fault, with its outcome.
test-faults: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m faults -v

test-slurm: $(VENV)/.installed-test
	$(RUN) -m pytest -m slurm

# What three newcomers do: own pictures with the shortest configuration; a project of their own, with the wheel; and the
# batch script, where a SLURM can be started.
test-newcomers: $(VENV)/.installed-test
	$(RUN) -m pytest tests/commands/test_pictures.py tests/test_examples.py tests/test_wheel.py -k "not commands_run"
	if command -v slurmctld > /dev/null; then $(RUN) -m pytest -m slurm; fi

# The lowest versions that are supported, exactly, in a virtual environment of their own.
test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -m "not ($(SLOW))"

# Builds the wheel and runs its commands where there is no clone; a part of `make test`, too.
test-wheel: $(VENV)/.installed-test
	$(RUN) -m pytest tests/test_wheel.py

# Mutation testing of what claims rest on; MODULES="ellips/metrics/certified.py ...": of these alone.
mutants: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m tests.mutants $(MODULES)

# The documentation site, strictly, into site/. What the pages show is tested by `make test`.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The site and the report in a browser: Chromium of the system, or that of `playwright install chromium`.
test-docs: docs $(VENV)/.installed-test
	$(RUN) -m pytest tests/test_site.py tests/ellips/reporting/test_report_in_a_browser.py

# The figures of the pages, and the notebook with what it prints, anew.
figures: $(VENV)/.installed-docs
	$(RUN) docs/figures.py
	$(RUN) -m jupyter execute --inplace docs/notebooks/digits.ipynb

# What reads files of others, on bytes that nobody wrote: each reader for so many seconds.
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzzing --seconds $(or $(SECONDS),600) $(TARGETS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable ".[docs]"
	touch $@

$(LOWEST)/.installed: pyproject.toml tests/lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --editable ".[test]" --constraint tests/lowest.txt
	touch $@

clean:
	rm -rf site $(VENV) $(LOWEST) $(DEMO) $(DEMO)_lipschitz $(DEMO)_smoothed
