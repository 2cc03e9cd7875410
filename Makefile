# `make demo`: train, index and query sample scenes under demo/. `make test`: lint, types, tests.
# `make sheet`: draw docs/images/contact-sheet.png from the index of the demo. `make site`: the documents.
PYTHON ?= python3
WEIGHTS ?= auto
SCENES ?= 240
BIN := .venv/bin
DEMO := demo
SBOM ?= sbom.json
MARK := .made-by-make-demo
FOREIGN = echo "$(DEMO) was not made by this: move it away, or name another folder, DEMO=…" >&2
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

.DELETE_ON_ERROR:
.PHONY: demo sheet site test slow lint lock sbom clean

demo: .venv/ready
	@test ! -e "$(DEMO)" || test -f "$(DEMO)/$(MARK)" || { $(FOREIGN); exit 1; }
	rm -rf "$(DEMO)"
	mkdir "$(DEMO)"
	touch "$(DEMO)/$(MARK)"
	$(BIN)/python examples/demo_weights.py "$(WEIGHTS)" > $(DEMO)/weights
	$(BIN)/segrec scenes --output $(DEMO)/scenes --count $(SCENES)
	$(BIN)/segrec train --images $(DEMO)/scenes/images --masks $(DEMO)/scenes/masks \
	    --classes $(DEMO)/scenes/classes.json --output $(DEMO)/model \
	    --backbone-weights "$$(cat $(DEMO)/weights)" --input-size 224 --positions 400 --C 0.1
	$(BIN)/segrec index --images $(DEMO)/scenes/images --model $(DEMO)/model \
	    --index $(DEMO)/index
	@echo; echo "How much of each class is there, over the images that have any?"
	@$(SQL) "SELECT class, count(*) AS images, round(avg(coverage), 3) AS mean_coverage \
	    FROM regions GROUP BY class ORDER BY class"
	@echo "Which places are fullest of cars?"
	@$(SQL) "SELECT parse_path(uri)[-2] AS place, count(*) AS images, \
	    round(avg(coverage_car), 3) AS mean_coverage_car \
	    FROM images GROUP BY place ORDER BY mean_coverage_car DESC LIMIT 5"
	@echo "Which images look like the one fullest of car, judged by the car, where it fills 29 to 96 %?"
	@$(SQL) "SELECT rank, uri, coverage, pearson FROM recommend(($(FULLEST)), k := 5, class := 'car', \
	    min_coverage := 0.29, max_coverage := 0.96)"
	@image="$$($(SQL) --format csv "$(FULLEST)" | tail -1)"; \
	$(BIN)/segrec query --index $(DEMO)/index --image-id "$$image" --class car \
	    --coverage 0.29 0.96 -k 12 --format html --output $(DEMO)/sheet.html
	@echo "Backbone weights: $$(cat $(DEMO)/weights). Open $(DEMO)/sheet.html in a browser."

SQL = $(BIN)/segrec sql --index $(DEMO)/index
FULLEST = SELECT arg_max(image_id, coverage) FROM regions WHERE class = 'car' AND coverage <= 0.96

# 256 colours without dithering: 180 KB in place of 560.
sheet: .venv/ready
	@test -d "$(DEMO)/index" || { echo "run make demo first" >&2; exit 1; }
	$(BIN)/segrec query --index $(DEMO)/index --uri $(DEMO)/scenes/images/place_10/place_10_0019.jpg \
	    --class car --coverage 0.29 0.96 -k 5 --format png --output $(DEMO)/sheet.png
	$(BIN)/python -c 'from PIL import Image; \
	    Image.open("$(DEMO)/sheet.png").convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE) \
	    .save("docs/images/contact-sheet.png", optimize=True)'

site: .venv/ready
	$(BIN)/mkdocs build --strict

test: lint
	$(BIN)/python -m pytest -m "not slow"

slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv --clear .venv || { echo "try: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Newest releases that pyproject.toml allows, with hashes and without registry addresses: what runs
# (the image has no more), and that with what tests and lints it.
lock: .venv/ready
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra image --output-file requirements.lock
	$(COMPILE) --extra image --extra dev --constraint requirements.lock \
	    --output-file requirements-dev.lock
	$(BIN)/uv pip compile $(LOCKED) --group sbom --output-file requirements-sbom.lock

COMPILE = $(BIN)/uv pip compile pyproject.toml $(LOCKED)
LOCKED = --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-header --upgrade

# What the image installs, with versions and hashes, as CycloneDX.
sbom: .venv-sbom/ready
	.venv-sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	    --output-file $(SBOM) requirements.lock

.venv-sbom/ready: requirements-sbom.lock
	$(PYTHON) -m venv --clear .venv-sbom
	.venv-sbom/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

clean:
	@test ! -e "$(DEMO)" || test -f "$(DEMO)/$(MARK)" || { $(FOREIGN); exit 1; }
	rm -rf .venv .venv-sbom "$(DEMO)"
