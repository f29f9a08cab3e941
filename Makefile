# UniRG recipes. `make help` lists every target. Two commands are enough to begin: make demo, make test.

RECIPE  ?= unirg_cxr
SEED    ?= 1
ARGS    ?=
FORCE   ?=
DATASET ?=
# The demo recipe on another data set or seed is a run of its own; any name can be given: RUN=my_run
RUN     ?= $(RECIPE)$(if $(filter demo,$(RECIPE)),$(if $(DATASET),-$(DATASET))$(if $(filter-out 1,$(SEED)),-seed$(SEED)))
DATA    ?= data$(if $(filter demo,$(RECIPE)),$(if $(filter-out 1,$(SEED)),/seed$(SEED)))
OUT     := outputs/$(RUN)

SYSTEM_PYTHON ?= python3
PYTHON  := .venv/bin/python
STAGE    = $(PYTHON) -m launch.stage --run $(OUT)
FORCED  := $(if $(FORCE),--force)

# Nothing is sent anywhere: no hub, no usage statistics. Loopback servers only, unless a recipe says otherwise.
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint data base sft rl-step1 select rl-step2 eval summary report clean

help: ## list every target
	@echo "make TARGET [RECIPE=unirg_cxr|demo|…] [DATASET=…] [RUN=…] [SEED=…] [ARGS=\"--key value\"] [FORCE=1]"
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- this machine ----------------------------------------------------------------------------------------------------

setup: .venv/installed ## make .venv with the pinned packages

.venv/installed: requirements.txt requirements-dev.txt
	@echo "── installing the pinned packages into .venv (about 2 GB on a CPU machine, 2–5 minutes)"
	@test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv .venv
	@$(PYTHON) -m pip install --disable-pip-version-check --quiet --progress-bar off $$(grep '^torch==' requirements.txt)
	@$(PYTHON) -m pip install --disable-pip-version-check --quiet --progress-bar off -r requirements.txt -r requirements-dev.txt
	@touch $@

test: setup ## the tests (CPU, under 10 minutes)
	$(PYTHON) -m pytest -q $(ARGS)

test-slow: setup ## the slower checks (whole demo on three seeds, servers, vLLM where it installs)
	$(PYTHON) -m pytest -q -m slow $(ARGS)

lint: setup ## ruff check and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean: ## remove this run's outputs (data and weights stay)
	rm -rf $(OUT)

# ---- the demo: phantoms, a tiny Qwen3-VL, every stage, one report ----------------------------------------------------

INSTITUTIONS := harbor summit prairie coast
PHANTOMS     := $(addprefix phantom_,$(INSTITUTIONS))

demo: setup ## everything on a CPU, small: data → SFT → RL step 1 → RL step 2 with a judge → evaluation → report
	@$(MAKE) --no-print-directory RECIPE=demo demo-stages

.PHONY: demo-stages demo-data
demo-stages:
	@$(MAKE) --no-print-directory RECIPE=demo demo-data base sft rl-step1 select rl-step2
	@$(MAKE) --no-print-directory RECIPE=demo eval DATASET= MODELS="base sft rl_step1 rl_step2"
	@$(MAKE) --no-print-directory RECIPE=demo summary report
	@echo; echo "Done. Open $(OUT)/report.html; the numbers are in $(OUT)/summary.json."

demo-data:
	@$(STAGE) --stage data --title "data: phantom studies of four institutions" -- \
	  $(PYTHON) -m data_prep phantom --institution all --seed $(SEED) --out $(DATA) $(FORCED)
