# `make` lists the targets. Every target installs what it needs into $(VENV); a second call finds it there.

VENV ?= .venv
PYTHON ?= python3
# More arguments for the script or tool behind a target: make test ARGS="-m slow"
ARGS ?=

python := $(VENV)/bin/python
pip := $(python) -m pip install --constraint constraints.txt
torch := $(shell grep '^torch==' constraints.txt)

# Handed to the recipe through the environment and never expanded by make,
# so that a prompt may hold quotes, dollars and spaces.
# Only what the command line says counts: some shells have a PROMPT of their own.
override PROMPT := $(if $(filter command,$(firstword $(origin PROMPT))),$(value PROMPT))
override IMAGE := $(if $(filter command,$(firstword $(origin IMAGE))),$(value IMAGE))
export PROMPT IMAGE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs into one environment at the same time break it.
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# A stamp is written only after the install before it has succeeded.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned versions need Python 3.11 or newer; $(PYTHON) is %d.%d. Try make PYTHON=python3.12." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: constraints.txt $(VENV)/.created
	$(pip) $(torch)
	touch $@

$(VENV)/.extra-%: setup.cfg pyproject.toml $(VENV)/.torch
	$(pip) --editable '.[$*]'
	touch $@

.PHONY: install
install: $(VENV)/.extra-train ## install what the scripts in examples/ need, and run nothing
	@echo "Installed. Activate it with: . $(VENV)/bin/activate"

.PHONY: demo
demo: $(VENV)/.extra-data ## dps-nano describes IMAGE="picture.png", draws PROMPT="...", or answers PROMPT about IMAGE
	@set --; \
	if [ -n "$$IMAGE" ]; then set -- "$$@" "--image=$$IMAGE"; fi; \
	if [ -n "$$PROMPT" ]; then set -- "$$@" "--prompt=$$PROMPT"; fi; \
	$(python) examples/nano/demo.py "$$@"

# Training allocates and frees large tensors in every step. With these settings glibc keeps their memory, in large pages, instead of
# returning it to the system, which saves a fifth of the time.
nano align smol: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456

.PHONY: nano
nano: $(VENV)/.extra-train ## train a dps-nano from nothing into runs/nano, in about 8 hours on 2 cores, and measure it
	$(MAKE) --jobs=2 --file=examples/nano/nano.mk python=$(python)
	$(python) examples/evaluate.py --config examples/recipes/nano/evaluate.yaml --model runs/nano --output runs/nano/figures.json

.PHONY: smol
smol: $(VENV)/.extra-train $(VENV)/.extra-serve ## teach SmolLM2-135M to name and draw emoji, in under an hour on 2 cores
	$(MAKE) --file=examples/smol/smol.mk python=$(python)

.PHONY: evaluate
evaluate: $(VENV)/.extra-train ## measure dps-nano and write the figures into its card
	$(python) examples/evaluate.py --config examples/recipes/nano/evaluate.yaml --fresh $(ARGS)
	$(python) examples/nano/release.py --output dps_hf/checkpoints/dps-nano

.PHONY: align
align: $(VENV)/.extra-train ## align dps-nano with what a judge prefers; figures before and after
	$(python) examples/nano/align.py --config examples/recipes/nano/align.yaml $(ARGS)

.PHONY: bench
bench: $(VENV)/.extra-train $(VENV)/.extra-serve ## compare the speed of DPS with its peers
	$(python) examples/benchmarks/run.py $(ARGS)

.PHONY: test
test: $(VENV)/.extra-test ## run the tests; ARGS="-m slow" for the slow ones
	$(python) -m pytest $(ARGS)

# Of each version its newest patch, in an environment that shares all else with $(VENV), the library's own tests of a model,
# and more ways of loading in fewer bits.
COMPAT ?= 5.19 5.24
compat_tests := tests/model tests/test_registration.py tests/hub tests/test_inference.py

$(VENV)/compat-%/.ready: $(VENV)/.extra-test
	rm -rf $(@D)
	$(python) -m venv --without-pip $(@D)
	$(python) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	$(@D)/bin/python -m pip install 'transformers==$*.*' 'optimum-quanto<0.3' 'torchao<0.19'
	$(python) -m pip download --no-deps --no-binary transformers --dest $(@D) \
		"transformers==$$($(@D)/bin/python -c 'import transformers; print(transformers.__version__)')"
	tar --extract --gzip --directory $(@D) --strip-components=1 --wildcards --file $(@D)/transformers-*.tar.gz '*/tests'
	touch $@

.PHONY: compat
compat: $(COMPAT:%=$(VENV)/compat-%/.ready) ## test the model on the oldest and the newest transformers; COMPAT="5.23" for others
	for version in $(COMPAT); do \
		TRANSFORMERS_TESTS=$(CURDIR)/$(VENV)/compat-$$version $(VENV)/compat-$$version/bin/python -m pytest \
			-m 'not slow and not gpu or mixins' $(compat_tests) $(ARGS) || exit 1; \
	done

.PHONY: style
style: $(VENV)/.extra-dev ## format the code and fix what can be fixed
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

.PHONY: quality
quality: $(VENV)/.extra-dev ## check format and lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .

.PHONY: types
types: $(VENV)/.extra-dev ## check the types
	$(python) -m mypy dps_hf

.PHONY: layers
layers: $(VENV)/.extra-dev ## check that imports run one way
	$(VENV)/bin/lint-imports

.PHONY: clean
clean: ## remove the environment and the tools' caches
	rm -rf $(VENV) build dist *.egg-info .coverage htmlcov .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
