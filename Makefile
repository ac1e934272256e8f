# Two commands from nothing: `make demo` and `make test`. Each creates .venv and installs what it needs.
PYTHON ?= python3
METHOD ?= bootmae
DATA ?= digits
SEED ?= 0
WORKDIR ?= runs/$(METHOD)_$(DATA)_$(SEED)
ARGS ?=
BIN := .venv/bin
COMMA := ,
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-all lint types golden pin clean

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	touch $@

# torch first and by its exact version: other builds bring gigabytes of CUDA libraries
.venv/dev: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,dev,torch]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm
	touch $@

# timm above and OpenMMLab's packages here without what they depend on (torchvision, OpenCV): tests/stubs.py
.venv/mm: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	  addict mmcv-lite mmengine mmpretrain mmsegmentation
	touch $@

# BEiT and CAE predict the codes of a tokenizer, CAE v2 and MR-MAE the features of a teacher. Their demos train
# one first, unless TEACHER names another workdir or file.
FIRST_beit := dvae
FIRST_cae := dvae
FIRST_caev2 := mae
FIRST_mrmae := mae
FIRST := $(FIRST_$(METHOD))
TEACHER ?= $(if $(FIRST),runs/$(FIRST)_$(DATA)_$(SEED))

demo: .venv/demo
ifneq ($(FIRST),)
ifeq ($(origin TEACHER),file)
	$(BIN)/python -m mimjax.main --config=configs/$(FIRST).py:demo,data=$(DATA) \
	  --workdir=$(TEACHER) --config.seed=$(SEED)
endif
endif
	$(BIN)/python -m mimjax.main \
	  --config=configs/$(METHOD).py:demo,data=$(DATA)$(if $(TEACHER),$(COMMA)path=$(TEACHER)) \
	  --workdir=$(WORKDIR) --config.seed=$(SEED) $(ARGS)

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: .venv/dev .venv/mm
	$(BIN)/python -m pytest -n 2 --dist loadgroup

golden: .venv/dev
	$(BIN)/python -m pytest tests/test_golden.py tests/torch_io/test_import_golden.py -rA

# with MIMJAX_GOLDEN=FOLDER:FOLDER of the official files; KINDS="mcmae.steps clip.hf" writes these alone
pin: .venv/dev
	PYTHONPATH=. $(BIN)/python tests/pin.py $(KINDS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv runs
