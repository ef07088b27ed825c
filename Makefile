# Two commands matter: `make book` and `make test`. Both build .venv first if it is missing.

PYTHON ?= python3
SUPPORTED := 3.11 3.12 3.13

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/kdsec-installed
EXTRAS := run,book,test
SPELLED := README.md CONTRIBUTING.md book notebooks kdsec benchmarks tests results/README.md

.DEFAULT_GOAL := help
.PHONY: help setup book pdf test slow lint fill notebooks figures attacks art cluster bench clean

help:
	@echo 'make book        run every chapter at the quick profile and build the book'
	@echo 'make pdf         print the whole book as one PDF and link it on the first page; needs Chromium'
	@echo 'make test        lint, spelling, type check, fast tests, and the notebooks against their stored outputs'
	@echo 'make slow        the slow tests'
	@echo 'make lint        ruff, spelling and mypy'
	@echo 'make notebooks   execute notebooks/ again and store their text outputs'
	@echo 'make fill        after new records: write the findings into the README and the notebooks'
	@echo 'make figures     draw the figures again from the committed records, without training'
	@echo 'make attacks     add the optional torchattacks package (AutoAttack, Square, CW, DeepFool)'
	@echo 'make art         add ART, to compare its extraction attacks with ours (python -m benchmarks.art)'
	@echo 'make cluster     add Snakemake and what it needs for SLURM and Kubernetes'
	@echo 'make bench       measure speed, each as a ratio to a plain loop'
	@echo 'make setup       create .venv with the tested packages (the others do it when needed)'
	@echo 'make clean       remove what was built; the virtual environment stays'
	@echo 'Another Python:  make PYTHON=python3.12 book'

setup: $(STAMP)

# The stamp is written last: an install that was interrupted is taken up again by the next make.
$(STAMP): pyproject.toml constraints.txt
	@command -v '$(PYTHON)' >/dev/null || \
	  { echo 'error: $(PYTHON) not found; install Python ($(SUPPORTED)) or say make PYTHON=...' >&2; exit 2; }
	@version=$$('$(PYTHON)' -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  case ' $(SUPPORTED) ' in *" $$version "*) ;; *) \
	  echo "error: $(PYTHON) is Python $$version; kdsec needs one of: $(SUPPORTED); say make PYTHON=python3.12" >&2; \
	  exit 2;; esac
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'error: $(PYTHON) lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv)' >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo 'creating $(VENV)'; '$(PYTHON)' -m venv --clear $(VENV); }
	@echo 'installing the packages of constraints.txt (several gigabytes on Linux, most of it torch)'
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

book: $(STAMP)
	@$(VENV)/bin/kdsec run --profile quick --seeds 0 --jobs 2 --out _build/run
	@$(PY) book/build.py

# Apart from the book, since two prints of some two hundred pages take a minute or more, and a browser.
pdf: book
	@$(PY) book/pdf.py

# Two workers, a file at a time: fixtures train networks once per file.
test: lint
	@$(PY) -m pytest -n 2 --dist loadfile -m 'not slow' --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg tests notebooks

slow: $(STAMP)
	@$(PY) -m pytest -m slow tests

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m codespell_lib $(SPELLED)
	@$(PY) -m mypy

fill: $(STAMP)
	@$(PY) book/sync.py --fill

notebooks: $(STAMP)
	@$(PY) book/sync.py

figures: $(STAMP)
	@$(PY) book/figures.py

# torchattacks asks for requests 2.25, which it never imports and which the book's tools cannot live with.
attacks: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1

# For a benchmark, which needs nothing else of what it asks for.
art: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps adversarial-robustness-toolbox==1.20.1 six

cluster: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster]'

bench: $(STAMP)
	@$(PY) -m benchmarks

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache
	find kdsec tests book benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
