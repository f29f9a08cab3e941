# UniRG recipes. `make help` lists every target. Two commands are enough to begin: make demo, make test.

RECIPE  ?= unirg_cxr
SEED    ?= 1
ARGS    ?=
EVAL_ARGS ?=
FORCE   ?=
# 1: what training computes is the same each time on the same machine, more slowly (launch/README.md)
DETERMINISTIC ?=
DATASET ?=
# recipes/<recipe>/<stage>_<variant>.yaml in place of <stage>.yaml, in a run of its own: VARIANT=lora
VARIANT ?=
V       := $(if $(VARIANT),_$(VARIANT))
# The demo recipe on another data set or seed is a run of its own; any name can be given: RUN=my_run
RUN     ?= $(RECIPE)$(V)$(if $(filter demo,$(RECIPE)),$(if $(DATASET),-$(DATASET))$(if $(filter-out 1,$(SEED)),-seed$(SEED)))
# Where prepared data, weights (launch/targets.mk) and runs lie; every target and Slurm follow.
DATA_DIR    ?= data
OUTPUTS_DIR ?= outputs
DATA    ?= $(DATA_DIR)$(if $(filter demo,$(RECIPE)),$(if $(filter-out 1,$(SEED)),/seed$(SEED)))
OUT     := $(OUTPUTS_DIR)/$(RUN)

# What becomes part of a path is a name: RUN=../data would have `make clean` remove the data, RUN= all of outputs/.
DIGITS  := 0 1 2 3 4 5 6 7 8 9
LETTERS := a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z
without = $(if $(2),$(call without,$(subst $(firstword $(2)),,$(1)),$(wordlist 2,$(words $(2)),$(2))),$(1))
named   = $(if $(or $(filter-out 1,$(words $($(1)))),$(filter .% -%,$($(1))),$(call without,$($(1)),$(LETTERS) $(DIGITS) - _ .)),\
          $(error $(or $(2),$(1))=$($(1)) is no name; it is one word of letters, digits, - _ and . that does not begin with - or .))
$(foreach variable,RECIPE $(if $(VARIANT),VARIANT) $(if $(NAME),NAME) $(if $(STAGE_NAME),STAGE_NAME),$(call named,$(variable)))
$(foreach word,$(DATASET),$(call named,word,DATASET))
$(if $(or $(filter-out 1,$(words $(SEED))),$(call without,$(SEED),$(DIGITS))),$(error SEED=$(SEED) is no seed; it is a whole number, 0 or more))
$(if $(wildcard recipes/$(RECIPE)/*.yaml),,$(error RECIPE=$(RECIPE) is not there (recipes/$(RECIPE)/*.yaml); there are \
  $(sort $(patsubst recipes/%/,%,$(dir $(wildcard recipes/*/sft*.yaml))))))
$(call named,RUN)

SYSTEM_PYTHON ?= python3
PYTHON  := .venv/bin/python
STAGE    = $(PYTHON) -m launch.stage --run $(OUT)
FORCED  := $(if $(FORCE),--force)
YAML    := recipes/$(RECIPE)
stage_yaml = $(or $(wildcard $(YAML)/$(1)$(V).yaml),$(error $(if $(VARIANT),VARIANT=$(VARIANT) has no $(1) of its own,RECIPE=$(RECIPE) \
             has no $(1)) (no $(YAML)/$(1)$(V).yaml); there are $(sort $(basename $(notdir $(wildcard $(YAML)/sft$(if $(VARIANT),_)*.yaml $(YAML)/rl_step?$(if $(VARIANT),_)*.yaml))))))

# The demo trains with one process a core; a real run with one a GPU (GPUS=8 of each of NODES=1). launch.stage checks first.
PROCESSES ?= $(if $(filter demo,$(RECIPE)),2,1)
TRAIN      = $(STAGE) $(if $(filter-out 1,$(PROCESSES)),--processes $(PROCESSES)) $(if $(GPUS),--gpus $(GPUS)) \
             $(if $(filter-out 1,$(NODES)),--nodes $(NODES)) $(if $(PARALLEL),--parallel $(PARALLEL))

export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1
ifeq ($(RECIPE),demo)
export HF_HUB_OFFLINE := 1
# One thread a process: on a busy two-core machine two threads wait for each other.
export OMP_NUM_THREADS := 1
export TORCH_CPP_LOG_LEVEL := ERROR
endif

.DEFAULT_GOAL := help
.PHONY: always help setup demo test test-slow lint check-docs data base sft rl-step1 select rl-step2 eval summary report clean \
        check-data submission bench-rewards bench-gpu bench-data chaos

help: ## list every target
	@echo "make TARGET [RECIPE=unirg_cxr|demo|…] [VARIANT=lora] [DATASET=…] [RUN=…] [SEED=…] [DETERMINISTIC=1] [ARGS=\"--key value\"] [EVAL_ARGS=…] [FORCE=1]"
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- this machine ----------------------------------------------------------------------------------------------------

setup: .venv/installed ## make .venv with the pinned packages, as the machine wants them [GPU=1] [GPU=0]

# GPU=1 or GPU=0 asks for the one or the other; GPU=h100 and the like are plan's.
.venv/installed: requirements.txt requirements-dev.txt requirements-ratescore.txt requirements-gpu.txt constraints.txt $(if $(filter 0 1,$(GPU)),always)
	@VENV=.venv SYSTEM_PYTHON="$(SYSTEM_PYTHON)" GPU="$(filter 0 1,$(GPU))" launch/setup.sh

test: setup ## the tests (CPU, under 10 minutes)
	$(PYTHON) -m pytest -q -n auto --dist loadfile $(ARGS)

test-slow: setup ## the slower checks (whole demo on three seeds, servers, vLLM where it installs)
	$(PYTHON) -m pytest -q -m slow $(ARGS)

check-docs: setup ## what the READMEs claim: commands, links, figures, choices (a part of make test)
	$(PYTHON) -m pytest -q tests/test_docs.py tests/recipes/test_paper_choices.py tests/launch/test_makefile.py $(ARGS)

lint: setup ## ruff check and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# What lies in the folder and is not its output.
KEPT = $(filter $(abspath $(OUT)) $(abspath $(OUT))/%,$(abspath $(DATA)) $(abspath $(WEIGHTS_DIR)) $(CURDIR))
clean: ## remove this run's outputs (data and weights stay)
	@test -z "$(KEPT)" || { echo "error: $(OUT) holds $(firstword $(KEPT)), which is not its output; remove by hand what may go" >&2; exit 2; }
	rm -rf "$(OUT)"

# ---- data ------------------------------------------------------------------------------------------------------------

data: setup ## prepare a data set: DATASET=mimic SOURCE=/path/to/it [ARGS="--rexrank FILE …"]
	@test -n "$(DATASET)" || { echo "error: name the data set: make data DATASET=iu_xray SOURCE=/path" >&2; exit 2; }
	@test -n "$(SOURCE)" || { echo "error: name the folder it lies in: make data DATASET=$(DATASET) SOURCE=/path" >&2; exit 2; }
	$(PYTHON) -m data_prep $(DATASET) --source "$(SOURCE)" --out $(DATA)/$(DATASET) $(FORCED) $(ARGS)

# ---- training and evaluation of any recipe ---------------------------------------------------------------------------

# A run that is not the recipe's own (another data set, seed or RUN name) keeps its stages in its own folder.
OTHER  := $(filter-out outputs/$(RECIPE)$(V),$(OUT))
TRAINED_ON := $(if $(DATASET),--datasets $(DATASET) --dataset_weights 1)
# The judge's answers and the metrics' findings are kept beside the runs.
CACHES := $(if $(filter-out outputs,$(OUTPUTS_DIR)),--judge_cache_dir $(OUTPUTS_DIR)/judge_cache --score_cache_dir $(OUTPUTS_DIR)/score_cache)
RATED_ON := $(if $(DATASET),--validation_datasets $(DATASET))
SEEDED := $(if $(filter-out 1,$(SEED)),--seed $(SEED))
COMMON := --data_dir $(DATA) $(SEEDED) $(if $(FORCE),--force true) $(if $(DETERMINISTIC),--full_determinism true)
JUDGE   = $(if $(JUDGE_URL),--judge_base_url $(JUDGE_URL)) $(if $(JUDGE_MODEL),--judge_model $(JUDGE_MODEL))
eval_yaml := $(or $(wildcard $(YAML)/eval$(V).yaml),$(YAML)/eval.yaml)
# A base model that lies in weights/ is looked for in WEIGHTS_DIR.
MODEL_IN_WEIGHTS = $(if $(filter-out weights,$(WEIGHTS_DIR)),$(patsubst weights/%,%,$(filter weights/%,$(shell $(PYTHON) -m foundation.recipe_files $(call stage_yaml,sft) model_name_or_path))))
WEIGHED = $(if $(filter-out weights,$(WEIGHTS_DIR)),--weights_dir $(WEIGHTS_DIR))

base: setup ## the demo's base model: a tiny Qwen3-VL with random weights
ifeq ($(RECIPE),demo)
	@$(STAGE) --stage base -- -m recipes.tiny_model --datasets $(if $(DATASET),$(DATASET),phantom_harbor phantom_summit phantom_prairie) \
	  --data_dir $(DATA) --output_dir $(OUT)/base --seed $(SEED) $(FORCED)
endif

sft: setup base ## supervised fine-tuning
	@$(strip $(TRAIN) --stage sft -- -m recipes.sft --config $(call stage_yaml,sft) $(COMMON) $(TRAINED_ON) \
	  $(if $(OTHER),--output_dir $(OUT)/sft $(if $(filter demo,$(RECIPE)),--model_name_or_path $(OUT)/base)) \
	  $(if $(MODEL_IN_WEIGHTS),--model_name_or_path $(WEIGHTS_DIR)/$(MODEL_IN_WEIGHTS))) $(ARGS)

rl-step1: setup ## GRPO on the RadCliQ-weighted reward, then the best checkpoint by 1/RadCliQ-v1
	@$(strip $(TRAIN) --stage rl_step1 -- -m recipes.grpo --config $(call stage_yaml,rl_step1) $(COMMON) $(WEIGHED) $(CACHES) \
	  $(TRAINED_ON) $(RATED_ON) $(if $(OTHER),--output_dir $(OUT)/rl_step1 --model_name_or_path $(OUT)/sft/final)) $(ARGS)
	@$(MAKE) --no-print-directory select STAGE_NAME=rl_step1

STAGE_NAME ?= rl_step1
select: setup ## the best checkpoint of a stage on validation (STAGE_NAME=rl_step1)
ifeq ($(or $(NODE_RANK),0),0)
	@$(strip $(STAGE) --stage select_$(STAGE_NAME) -- -m recipes.select_checkpoint --config $(eval_yaml) --run $(OUT) \
	  --stage $(STAGE_NAME) --data_dir $(DATA) $(WEIGHED) $(if $(DATASET),--only_dataset $(DATASET)) $(if $(FORCE),--force true)) $(EVAL_ARGS)
else
	@echo "── best checkpoint of $(STAGE_NAME): the first node (NODE_RANK=0) selects it; waiting for $(OUT)/$(STAGE_NAME)/best"
	@until test -e $(OUT)/$(STAGE_NAME)/best; do sleep 5; done
endif

# With GPUS the judge runs beside training on the same ones, unless one answers already or JUDGE_URL names one.
JUDGED = $(if $(GPUS),$(if $(JUDGE_URL)$(filter-out 1,$(NODES)),,--judge $(OUT)/judge.log))

rl-step2: setup ## GRPO with the judge added, KL to the step-1 policy: GPUS=8 starts and stops the judge too [JUDGE_URL=…]
	@$(strip $(TRAIN) $(JUDGED) --stage rl_step2 -- -m recipes.grpo --config $(call stage_yaml,rl_step2) $(COMMON) $(WEIGHED) $(CACHES) \
	  $(TRAINED_ON) $(RATED_ON) $(JUDGE) $(if $(OTHER),--output_dir $(OUT)/rl_step2 --model_name_or_path $(OUT)/rl_step1/best)) $(ARGS)

MODELS ?=
SPLIT  ?=
eval: setup ## generate and score: DATASET=mimic [MODELS="sft rl_step2 name=path"] [SPLIT=test]
	@$(strip $(STAGE) --stage eval -- -m recipes.evaluate --config $(eval_yaml) --run $(OUT) --data_dir $(DATA) $(WEIGHED) $(JUDGE) \
	  $(if $(DATASET),--only_dataset $(DATASET)) $(if $(SPLIT),--split $(SPLIT)) \
	  $(if $(MODELS),--models $(MODELS)) $(if $(FORCE),--force true)) $(EVAL_ARGS)

summary: setup ## the run's principal numbers: summary.json
	@$(PYTHON) -m evaluation summary --outputs $(OUT)

report: setup ## the run's report: report.html, one file that opens offline
	@$(STAGE) --stage report -- -m evaluation report --outputs $(OUT)

# ---- the demo: phantoms, a tiny Qwen3-VL, every stage, one report ----------------------------------------------------

demo: setup ## everything on a CPU, small: data → SFT → RL step 1 → RL step 2 with a judge → evaluation → report
	@$(MAKE) --no-print-directory RECIPE=demo DATASET= demo-stages

.PHONY: demo-stages demo-data
demo-stages: demo-data
	@$(MAKE) --no-print-directory sft
	@$(MAKE) --no-print-directory rl-step1
	@$(MAKE) --no-print-directory rl-step2
	@$(MAKE) --no-print-directory eval MODELS="base sft rl_step1 rl_step2"
	@$(MAKE) --no-print-directory summary
	@$(MAKE) --no-print-directory report
	@echo; echo "Done. Open $(OUT)/report.html in a browser; the numbers are in $(OUT)/summary.json."

demo-data:
	@$(STAGE) --stage data --title "data: phantom studies of four institutions" --done $(DATA)/phantom_coast/card.json -- \
	  -m data_prep phantom --institution all --seed $(SEED) --out $(DATA) $(FORCED)

# ---- more ------------------------------------------------------------------------------------------------------------

check-data: setup ## validate a prepared folder: DATASET=mimic
	@test -n "$(DATASET)" || { echo "error: name the data set: make check-data DATASET=mimic; in $(DATA) there are: $(or $(notdir $(patsubst %/card.json,%,$(wildcard $(DATA)/*/card.json))),none yet)" >&2; exit 2; }
	$(PYTHON) -m data_prep check $(DATA)/$(DATASET)

submission: setup ## pack what ReXrank asks of a submission: ARGS="--help" lists the options
	$(PYTHON) -m evaluation submission $(ARGS)

bench-rewards: setup ## our reward engine against the packages, side by side
	$(PYTHON) -m benchmarks.bench_rewards $(ARGS)

bench-gpu: setup ## one GPU: rewards, training and vLLM in the 8 B model's shape, random weights [ARGS="--parts sft"]
	$(PYTHON) -m benchmarks.bench_gpu $(ARGS)

bench-data: setup ## image preparation against decode-and-resize alone; MIMIC-sized tables
	$(PYTHON) -m benchmarks.bench_data $(ARGS)

ROUNDS     ?= 20
CHAOS_SEED ?= 1
chaos: setup ## kill, damage, fill the disk, start twice at random moments; compare with an undisturbed run [ROUNDS=20] [CHAOS_SEED=1]
	$(PYTHON) -m benchmarks.chaos --rounds $(ROUNDS) --seed $(CHAOS_SEED) $(ARGS)

include evaluation/targets.mk
include recipes/targets.mk
include launch/targets.mk
