# Two commands from nothing: `make demo` and `make test`. Each creates .venv and installs what it needs;
# with another Python (`make test PYTHON=python3.12`) an environment of its own, .venv-python3.12.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
METHOD ?= bootmae
# what minutes of training proved themselves on: on shifted digits k-NN and linear probe of these methods are
# above those of the untrained encoder by two standard errors over three seeds (docs/evaluation.md)
SHIFTED := mae bootmae beit cae caev2 mrmae
DATA ?= $(if $(filter $(SHIFTED),$(METHOD)),shifted_digits,digits)
SEED ?= 0
WORKDIR ?= runs/$(METHOD)_$(DATA)_$(SEED)
ARGS ?=
BIN := $(VENV)/bin
COMMA := ,
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-gate test-all lint types golden pin parity docs wheel test-wheel clean

$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	touch $@

# torch first and by its exact version: where a build for CPUs is at hand it is taken, while others
# bring gigabytes of CUDA libraries
$(VENV)/dev: $(VENV)/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,dev,torch]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm
	touch $@

# timm above and OpenMMLab's packages here without what they depend on (torchvision, OpenCV): tests/stubs.py
$(VENV)/mm: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	  addict mmcv-lite mmengine mmpretrain mmsegmentation
	touch $@

# BEiT and CAE predict the codes of a tokenizer, CAE v2 and MR-MAE the features of a teacher. Their demos train
# one first, unless TEACHER names another workdir or file. METHOD=recipes/three_targets is a demo too.
FIRST_beit := dvae
FIRST_cae := dvae
FIRST_caev2 := mae
FIRST_mrmae := mae
FIRST_recipes/three_targets := mae
FIRST := $(FIRST_$(METHOD))
TEACHER ?= $(if $(FIRST),runs/$(FIRST)_$(DATA)_$(SEED))

demo: $(VENV)/demo
ifneq ($(FIRST),)
ifeq ($(origin TEACHER),file)
	$(BIN)/python -m mimjax train --config=configs/$(FIRST).py:demo,data=$(DATA) \
	  --workdir=$(TEACHER) --config.seed=$(SEED)
endif
endif
	$(BIN)/python -m mimjax train \
	  --config=configs/$(METHOD).py:demo,data=$(DATA)$(if $(TEACHER),$(COMMA)path=$(TEACHER)) \
	  --workdir=$(WORKDIR) --config.seed=$(SEED) $(ARGS)

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not gate"

test-gate: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -m gate

test-all: $(VENV)/dev $(VENV)/mm $(VENV)/docs
	$(BIN)/python -m pytest -n 2

golden: $(VENV)/dev
	$(BIN)/python -m pytest tests/test_golden.py tests/torch_io/test_import_golden.py -rA

# with MIMJAX_GOLDEN=FOLDER:FOLDER of the official files; KINDS="mcmae.steps clip.hf" writes these alone
pin: $(VENV)/dev
	PYTHONPATH=. $(BIN)/python tests/pin.py $(KINDS)

# docs/parity.json, the table of docs/proofs.md, from all official files in MIMJAX_GOLDEN=FOLDER:FOLDER
# and in the repository; KINDS as for pin
parity: $(VENV)/dev
	PYTHONPATH=. $(BIN)/python tests/parity.py $(KINDS)

$(VENV)/docs: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# the site, in docs/_build/html; a warning is an error. The tutorial is executed where it has changed
# since it was executed last; with NOTEBOOKS=off it is not
NOTEBOOKS ?= cache
docs: $(VENV)/docs
	NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

# a release's file in dist/, and what it does in an empty folder with nothing else of this checkout
wheel:
	rm -f dist/*.whl
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

test-wheel: wheel
	rm -rf dist/empty && $(PYTHON) -m venv dist/empty/.venv
	dist/empty/.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt dist/mimjax-*.whl
	cd dist/empty && .venv/bin/mimjax train --config=mae:demo --workdir=run \
	  --config.steps=200 --config.eval.every=0 && test -s run/table.md && test -s run/report.html

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) .pytest_cache
