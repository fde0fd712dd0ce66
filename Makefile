PYTHON ?= python3
BIN := .venv/bin
# Installed again only when a list of dependencies has changed.
LISTS := setup.cfg pyproject.toml constraints.txt
# What tests compare attacks with, or train with, and what that imports: pins of its own are old (torchattacks':
# requests 2.25).
JUDGES := torchattacks foolbox lightning
JUDGES_NEED := eagerpy GitPython lightning-utilities requests torchmetrics tqdm
# Processes that share the tests, one thread each; every one spends ten seconds of CPU on imports before the first.
WORKERS ?= 2

.PHONY: demo test check docs clean

demo: .venv/.run           ## train, quantise, export and check three networks on digits
	$(BIN)/qrobust run recipes/digits.toml

test: check                ## style, types, tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs          ## write generated documents anew, then the site into build/site; any warning fails
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv runs build *.egg-info

.venv/.run: $(LISTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev: $(LISTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $(JUDGES_NEED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(JUDGES)
	touch .venv/.run $@

.venv/.docs: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@
