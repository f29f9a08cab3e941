# Comparisons and measurements: included by the Makefile.

NAME        ?=
JUDGE_MODEL ?=
.PHONY: sft-grid ablation ablation-table bench-train

ABLATE = $(PYTHON) -m recipes.ablate
ABLATE_ON = --recipe $(RECIPE) --run $(OUT) --data_dir $(DATA) $(if $(VARIANT),--variant $(VARIANT)) $(WEIGHED) \
            $(if $(DATASET),--only_dataset $(DATASET)) $(FORCED) \
            --processes $(PROCESSES) $(if $(GPUS),--gpus $(GPUS)) $(if $(NODES),--nodes $(NODES)) $(if $(PARALLEL),--parallel $(PARALLEL))
# After a first -- for training, after a second for selection and evaluation.
ABLATE_WITH = $(if $(SEEDED)$(ARGS)$(EVAL_ARGS),-- $(SEEDED) $(ARGS) $(if $(EVAL_ARGS),-- $(EVAL_ARGS)))

sft-grid: setup ## SFT over learning rates 1e-5, 5e-5 and batches 128, 256, 512, rated on validation
	@$(ABLATE) grid $(ABLATE_ON) $(GRID) $(ABLATE_WITH)

ablation: setup ## one comparison, trained and evaluated: NAME=reward_bleu2 (recipes/ablations/) [JUDGE_URL=…] [VARIANT=lora]
	@test -n "$(NAME)" || { echo "error: name it: make ablation NAME=…, one of $(sort $(basename $(notdir $(wildcard recipes/ablations/*.yaml))))" >&2; exit 2; }
	@$(ABLATE) run $(NAME) $(ABLATE_ON) $(JUDGE) $(ABLATE_WITH)

ablation-table: setup ## a table over all comparisons that have run, with differences from what each is compared with
	@$(ABLATE) table --run $(OUT)

bench-train: setup ## what rewards and monitors cost beside a bare TRL script, on the tiny model
	$(PYTHON) -m benchmarks.bench_train $(ARGS)
