# make demo    distil a small real model, from nothing to a report
# make test    all tests
# make check   what the tests do not look at: style, types, import rules
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

$(VENV)/.ready: scripts/setup.sh pyproject.toml constraints.txt
	bash scripts/setup.sh $(VENV)

clean:
	rm -rf $(VENV) .cache runs
