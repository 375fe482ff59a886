# Everything a newcomer needs: `make demo` and `make test`. Both make the virtual environment first, if there is none.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/demo
CONFIG := --config configs/digits.yaml
CERTIFY = $(RUN) certify.py $(CONFIG) --name demo --ckpt_path $(DEMO)/checkpoints/best.ckpt
SLOW := faults or slurm

.PHONY: demo test test-faults test-slurm lint clean

# A fit that was interrupted is started anew: only the stamp says that it ended. Results lie in runs/demo*/.
demo: $(DEMO)/.fitted $(DEMO)_lipschitz/.fitted
	$(RUN) train.py test $(CONFIG) --name demo --ckpt_path $(DEMO)/checkpoints/best.ckpt
	$(CERTIFY) --config configs/certify_digits.yaml
	$(CERTIFY) --config configs/certify_digits_clever.yaml --skip 18 --out $(DEMO)/certify/clever
	$(RUN) certify.py --config configs/digits_lipschitz.yaml --config configs/certify_digits_lipschitz.yaml \
		--name demo_lipschitz

$(DEMO)/.fitted: | $(VENV)/.installed
	rm -rf $(DEMO)
	$(RUN) train.py fit $(CONFIG) --name demo
	touch $@

$(DEMO)_lipschitz/.fitted: | $(VENV)/.installed
	rm -rf $(DEMO)_lipschitz
	$(RUN) train.py fit --config configs/digits_lipschitz.yaml --name demo_lipschitz
	touch $@

# Two processes with one thread each use two cores better than one process with two.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not ($(SLOW))"

test-faults: $(VENV)/.installed-test
	$(RUN) -m pytest -m faults

test-slurm: $(VENV)/.installed-test
	$(RUN) -m pytest -m slurm

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

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)_lipschitz
