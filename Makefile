# `make help` lists the targets. Everything runs in .venv, which `make setup` makes from the pinned versions.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test fix check bench serve drill

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(INSTALLED) ## make .venv with the pinned packages

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED) ## train on 1,797 handwritten digits and predict a few; needs no network once the packages are installed
	$(RUN) -m training.digits
	$(RUN) -m training.run ds=DIGITS model=tiny augment=none data.batch_size=64 trainer.max_epochs=8
	$(RUN) -m serving.batch md=DIGITS predict.input_dir=data/raw_data/DIGITS/7 predict.output_dir=out/demo

test: $(INSTALLED) ## the whole suite: style, types, layers, tests
	$(MAKE) --no-print-directory check
	$(RUN) -m pytest

bench: $(INSTALLED) ## measure beside peers: make bench WEIGHTS=FOLDER PHOTOS=FOLDER, or with NAME=serve
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(RUN) -m benchmarks $(NAME) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(PHOTOS),--photos $(PHOTOS))

drill: $(INSTALLED) ## kill workers, machines, the command: make drill, or make drill FAULTS=worker:1,node:1
	$(RUN) -m benchmarks.drill $(if $(FAULTS),faults=$(FAULTS))
	DRILL=1 $(RUN) -m pytest tests/cluster/test_hosts.py

serve: $(INSTALLED) ## the endpoint behind the fastest ingress: make serve MODEL=EXAMS
	$(RUN) -m serving.launch model=$(MODEL)

fix: $(INSTALLED) ## format, and mend what ruff can mend
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

check: $(INSTALLED) ## style, types, layers
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
