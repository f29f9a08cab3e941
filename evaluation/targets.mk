# What is done with a finished model beside generating and scoring: included by the Makefile.

.PHONY: write counterfactual
# The run's last model, unless MODEL names another.
WRITTEN_BY = $(or $(MODEL),$(firstword $(foreach stage,rl_step2/final rl_step1/best sft/final,$(wildcard $(OUT)/$(stage)))))
NO_MODEL   = error: no trained model in $(OUT); name a run (RECIPE=demo) or a checkpoint (MODEL=outputs/demo/rl_step2/final)
# Texts and paths go by the environment: what stands in them is nothing that a shell reads.
export IMAGE PRIOR_IMAGE PRIOR_REPORT INDICATION COMPARISON

write: setup ## the report of a film: IMAGE=film.dcm [PRIOR_IMAGE=… PRIOR_REPORT=prior.txt INDICATION="…" COMPARISON="…"] [MODEL=…] [ARGS="--json --anyway"]
	@test -n "$$IMAGE" || { echo "error: name the film: make write IMAGE=film.dcm" >&2; exit 2; }
	@test -n "$(WRITTEN_BY)" || { echo "$(NO_MODEL)" >&2; exit 2; }
	@$(PYTHON) -m evaluation write --model $(WRITTEN_BY) --image "$$IMAGE" \
	  $(if $(PRIOR_IMAGE),--prior_image "$$PRIOR_IMAGE") $(if $(PRIOR_REPORT),--prior_report "$$PRIOR_REPORT") \
	  $(if $(INDICATION),--indication "$$INDICATION") $(if $(COMPARISON),--comparison "$$COMPARISON") $(ARGS)

.PHONY: serve
serve: setup ## a page on this machine: drop a film, read its report; and an OpenAI-compatible endpoint [MODEL=…] [PORT=8010] [HOST=…]
	@test -n "$(WRITTEN_BY)" || { echo "$(NO_MODEL)" >&2; exit 2; }
	@$(PYTHON) -m evaluation serve --model $(WRITTEN_BY) $(if $(filter command line,$(origin HOST)),--host "$(HOST)") \
	  $(if $(PORT),--port "$(PORT)") $(ARGS)

counterfactual: setup ## test reports again with one thing changed: does the model look at the film? [MODELS="sft rl_step2"] [ARGS="--studies 60"]
	@$(STAGE) --stage counterfactual -- \
	  -m evaluation counterfactual --outputs $(OUT) $(WEIGHED) $(if $(MODELS),--models $(MODELS)) \
	  $(if $(filter demo,$(RECIPE)),--batch_size 600) $(ARGS)

RIVALS ?= recipes/rivals/rivals.yaml
.PHONY: rivals
rivals: setup ## other models over an API, for the same studies, scored alike [RIVALS=mine.yaml] [DATASET=…] [EVAL_ARGS="--rival_studies 100"]
	@$(STAGE) --stage rivals -- \
	  -m recipes.rivals --config $(eval_yaml) --run $(OUT) --rivals "$(RIVALS)" --data_dir $(DATA) $(WEIGHED) $(JUDGE) \
	  $(if $(DATASET),--only_dataset $(DATASET)) $(if $(FORCE),--force true) $(EVAL_ARGS)
