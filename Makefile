# make demo    distil a small real model, from nothing to a report
# make test    all tests
# make check   what the tests do not look at: style, types, import rules, the documentation's links
VENV ?= .venv

.PHONY: demo test check clean
demo: $(VENV)/.ready
	$(VENV)/bin/python examples/demo/run.py

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -n 2

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

$(VENV)/.ready: scripts/setup.sh pyproject.toml constraints.txt
	bash scripts/setup.sh $(VENV)

clean:
	rm -rf $(VENV) .cache runs
