# Where it runs: this machine's readiness, the recipe's cost, weights, servers, reproduction. Included by the Makefile.

GPU         ?= h100
# GPUs beside those that train: the judge's, and a vLLM server's (vllm_mode: server). Empty: plan takes one each where needed.
JUDGE_GPUS  ?=
SERVER_GPUS ?=
NODES       ?= 1
PARALLEL    ?=
WEIGHTS_DIR ?= weights
MIRROR      ?=
OUTPUT      ?=
# Stages by the names of their targets or of their files: ASK=rl-step1 is ASK=rl_step1.
ASKED       := $(subst -,_,$(ASK))

.PHONY: doctor verify plan weights weights-check reproduce judge-server vllm-server

doctor: ## is this machine ready? [ASK=sft] one stage only; [VARIANT=lora] [GPUS=8] [ARGS=--json]
	@$(or $(wildcard $(PYTHON)),$(SYSTEM_PYTHON)) -m launch.doctor --recipe $(RECIPE) --data_dir $(DATA) --weights_dir $(WEIGHTS_DIR) \
	  --run $(OUT) $(if $(GPUS),--gpus $(GPUS)) $(if $(JUDGE_URL),--judge_base_url $(JUDGE_URL)) \
	  $(if $(VARIANT),--variant $(VARIANT)) $(if $(PARALLEL),--parallel $(PARALLEL)) $(if $(ASKED),--stage $(ASKED)) $(ARGS)

# With VARIANT=lora the stages that have one, and the evaluation: its own where it has one.
EVALUATION := $(basename $(notdir $(eval_yaml)))
PLANNED = $(if $(ASKED),$(filter-out eval_%,$(addsuffix $(V),$(ASKED))) $(if $(filter eval,$(ASKED)),$(EVALUATION)),$(if $(V),$(sort $(basename $(notdir $(wildcard $(YAML)/*$(V).yaml))) $(EVALUATION))))

plan: setup ## what a recipe will cost, before any download: GPUS=8 GPU=h100 [TARGET_HOURS=24] [JUDGE_GPUS=4] [PARALLEL=zero3] [ASK=sft] [VARIANT=lora]
	@$(PYTHON) -m launch.plan --recipe $(RECIPE) --gpu $(GPU) --data_dir $(DATA) \
	  $(if $(GPUS),--gpus "$(GPUS)") --nodes "$(NODES)" $(if $(JUDGE_GPUS),--judge_gpus $(JUDGE_GPUS)) \
	  $(if $(SERVER_GPUS),--server_gpus $(SERVER_GPUS)) $(if $(PARALLEL),--parallel $(PARALLEL)) $(if $(PLANNED),--stage $(PLANNED)) \
	  $(if $(JUDGE_MODEL),--judge_model $(JUDGE_MODEL)) $(if $(TARGET_HOURS),--target_hours $(TARGET_HOURS)) $(ARGS)

weights: setup ## base model, judge and metric weights into WEIGHTS_DIR [MIRROR=https://…] [ARGS="--only metrics"]
	@$(PYTHON) -m launch.weights --out $(WEIGHTS_DIR) $(if $(MIRROR),--mirror $(MIRROR)) $(ARGS)

weights-check: setup ## check every sha256 of WEIGHTS_DIR against its lock file
	@$(PYTHON) -m launch.weights --out $(WEIGHTS_DIR) --verify

reproduce: setup ## the commands that made an output: OUTPUT=outputs/demo/sft
	@test -n "$(OUTPUT)" || { echo "error: name the stage's folder: make reproduce OUTPUT=$(OUT)/sft" >&2; exit 2; }
	@$(PYTHON) -m launch.reproduce $(OUTPUT)

judge-server: setup ## a local judge by vLLM, from WEIGHTS_DIR where make weights put it [JUDGE_MODEL=Qwen/Qwen3-8B] [PORT=8001]
	@WEIGHTS_DIR=$(WEIGHTS_DIR) $(PYTHON) -m foundation.signals launch/judge_server.sh

vllm-server: setup ## rollouts on GPUs of their own: MODEL=outputs/unirg_cxr/sft/final [PORT=8000]
	@$(PYTHON) -m foundation.signals launch/vllm_server.sh

# A machine's first hour: RECIPE=demo needs no weights and no GPU.
verify: setup $(if $(filter demo,$(RECIPE)),demo-data) base ## weights, metrics against their packages, judge, base model, training: right here? verify.html [REPORTS=…] [ARGS="--only metrics"]
	@$(PYTHON) -m launch.verify --recipe $(RECIPE) --out $(OUT)/verify --data_dir $(DATA) --weights_dir $(WEIGHTS_DIR) \
	  $(if $(VARIANT),--variant $(VARIANT)) $(if $(GPUS),--gpus $(GPUS)) $(if $(DATASET),--datasets $(DATASET)) \
	  $(if $(REPORTS),--reports "$(REPORTS)") $(if $(JUDGE_URL),--judge_base_url $(JUDGE_URL)) $(if $(JUDGE_MODEL),--judge_model $(JUDGE_MODEL)) \
	  $(if $(MODEL_IN_WEIGHTS),--model $(WEIGHTS_DIR)/$(MODEL_IN_WEIGHTS),$(if $(filter demo,$(RECIPE)),--model $(OUT)/base)) $(ARGS)
