# `make help` lists the targets. Everything is installed into .venv on first use; `make PYTHON=/path/to/python3.12 test` chooses the Python.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.installed
export PHOTO
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test test-web soak bench book chapters sync jupyter train-bundled verify-official

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## restore a photo with the bundled model: figures/demo.png (your own: make demo PHOTO=me.jpg)
	@$(PY) figures/demo.py $${PHOTO:+"$$PHOTO"}

test: $(READY) ## twins, package, book structure, tests, all chapters and solutions agree
	@failed=; \
	echo "== structure of the book"; $(PY) nbs/book.py check || failed="$$failed structure"; \
	echo "== tests"; $(PY) -m pytest -q --durations=10 || failed="$$failed tests"; \
	echo "== chapters and solutions, executed"; $(PY) nbs/book.py run || failed="$$failed chapters"; \
	if [ -n "$$failed" ]; then echo "== failed:$$failed"; exit 1; fi; \
	echo "== all well: structure, tests, chapters"

test-web: $(READY) ## in a real browser: the local web page, and the book's pages (of a rendered book: make test-web BOOK=_book)
	@bash tests/web/setup && .venv-web/bin/python -m pytest -q --durations=5 tests/web/browser.py tests/web/pages.py

soak: $(READY) ## the long counts: 20,000 damaged files, 1,000 photos, 40 kills of training runs (an hour)
	@$(PY) tests/soak.py

bench: $(READY) ## measure speed and memory beside the official code: figures/bench/*.json (half an hour of a quiet machine)
	@$(PY) -c "import sys; sys.path.append('tests/peer'); from official import load_official; load_official()" 2>/dev/null || \
		{ echo "make bench needs the official packages in .peer: tests/peer/README.md tells how (pip install, three lines)"; exit 1; }
	$(PY) tests/bench/startup.py
	$(PY) tests/bench/degradation.py
	$(PY) tests/bench/training.py
	$(PY) tests/bench/inference.py

book: $(READY) ## check the book's structure and render it with Quarto into _book/; a warning is a failure
	@$(PY) nbs/book.py check
	@$(PY) nbs/book.py render

chapters: $(READY) ## execute the chapters and save their outputs (some: make chapters NN="04 05")
	@$(PY) nbs/book.py execute $(NN)

sync: $(READY) ## text twins -> notebooks -> package
	@$(PY) nbs/book.py sync $(NN)

jupyter: $(READY) ## open the chapters in JupyterLab
	@$(PY) -m jupyterlab nbs

train-bundled: $(READY) ## train the bundled model again: make train-bundled DATA=faces VALID=other-faces MINUTES=60 (of each long stage)
	@if [ -z "$(DATA)" ] || [ -z "$(VALID)" ]; then echo "train-bundled needs DATA=DIR and VALID=DIR, folders of aligned faces"; exit 2; fi
	$(PY) figures/bundled.py prior --data "$(DATA)" --minutes $(MINUTES)
	$(PY) figures/bundled.py trials --data "$(DATA)" --valid "$(VALID)" --minutes 5
	$(PY) figures/bundled.py restorer --data "$(DATA)" --valid "$(VALID)" --minutes $(MINUTES)
	$(PY) figures/bundled.py unet --data "$(DATA)" --valid "$(VALID)"
	$(PY) figures/bundled.py share --data "$(DATA)"
	$(PY) figures/bundled.py ship
	$(PY) figures/bundled.py score --data "$(DATA)" --valid "$(VALID)"
	$(PY) figures/bundled.py pictures --valid "$(VALID)"

verify-official: $(READY) ## compare with the official code on its released weights (needs a network)
	@$(PY) tests/peer/verify_official.py

# The stamp holds this folder's path: a copied or moved tree installs afresh, so that it never tests its original.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): settings.ini pyproject.toml setup.py
	@bash .ci/setup "$(PYTHON)"
