# Two commands for users: `make demo` and `make test`. Both install what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# two processes of one thread are faster than one of two
RUN := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-sbi test-upstream coverage lint types benchmark report docs build \
    install clean

install: $(INSTALLED)

# torch first, at the tested version: others pull in much more than is needed
$(INSTALLED): pyproject.toml benchmarks/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]" -e benchmarks
	# its reference posteriors are read as files; its own requirements are too old
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt sbibm
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m sbi_multilevel_benchmarks.demo --out results/demo.png

test: $(INSTALLED)
	$(RUN) -m "not slow" --doctest-modules

test-slow: $(INSTALLED)
	$(RUN) -m slow

# sbi's own tests, with our classes in their parents' place
test-sbi: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/sbi_suite/run.py -n 2

# the patches for sbi in upstream/, against its source distribution on PyPI
test-upstream: $(INSTALLED)
	$(BIN)/python upstream/check.py --quick

# the default suite; fails below the floor of pyproject.toml
coverage: $(INSTALLED)
	$(RUN) -m "not slow" --doctest-modules --cov --cov-report=term-missing

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python .github/check_notebooks.py tutorials/*.ipynb

types: $(INSTALLED)
	$(BIN)/pyright --pythonpath $(BIN)/python

# the tables of the README; SBI_MULTILEVEL_CAMELS and SBI_MULTILEVEL_OU2 name the files.
# Goes on where it was stopped, and ends with the report.
benchmark: $(INSTALLED)
	bash benchmarks/reproduce.sh $(abspath $(BIN)/python)

# tables and curves of what the repository has, in results/report/index.html
report: $(INSTALLED)
	$(BIN)/python -m sbi_multilevel_benchmarks report benchmarks/results/*.jsonl \
	    --out results/report

# the reference site, in docs/_build/html/index.html; what cannot be linked is an error
docs: $(VENV)/.installed-doc
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -n -b html \
	    docs docs/_build/html

$(VENV)/.installed-doc: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[doc]"
	touch $@

# wheel and source distribution in dist/, their metadata checked; the wheel is imported
build: $(VENV)/.installed-release
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pip install -q --no-deps --target build/wheel dist/*.whl
	cd build/wheel && PYTHONPATH=. $(abspath $(BIN)/python) -c \
	    "import sbi_multilevel as s; assert 'build' in s.__file__, s.__file__"

$(VENV)/.installed-release: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[release]"
	touch $@

clean:
	rm -rf $(VENV) .sbi-tests results build dist docs/_build *.egg-info
