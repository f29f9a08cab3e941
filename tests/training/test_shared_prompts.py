"""Shared prompts are exact: the same log-probabilities, gradients, losses and figures as TRL's row for each rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from rl_runs import Run, grpo_run
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from foundation.errors import RecipeError
from model.processor import load_processor
from training.shared_prompts import Films, check_attention, groups_of, pack_studies

ROLLOUTS = 4
WIDTH = 9  # tokens of the longest report
LENGTHS = [[9, 5, 5, 0], [3, 9, 1, 7]]  # of each study's rollouts; the second and third of the first study are equal


@pytest.fixture(scope="module")
def trainer(tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    return grpo_run(tmp_path_factory.mktemp("shared"), tiny_base, phantom_data, max_steps=1, save_strategy="no").trainer


@pytest.fixture(scope="module")
def deep_model(tiny_base: Path) -> Qwen3VLForConditionalGeneration:
    """Random weights, grouped-query attention, deepstack features into three of four layers: where positions count."""
    config = Qwen3VLConfig.from_pretrained(tiny_base).to_dict()
    text, vision = config["text_config"], config["vision_config"]
    text |= {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2}
    vision |= {"depth": 4, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1, 2], "initializer_range": 0.2}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


@pytest.fixture(scope="module")
def batch(tiny_base: Path) -> dict:
    """Eight rollouts of two studies, as TRL holds them: the first with two films of different sizes, the second with one."""
    torch.manual_seed(1)
    processor = load_processor(str(tiny_base))
    films = [[_film(64, 96), _film(96, 64)], [_film(96, 96)]]
    texts = [
        "<|im_start|>now <|vision_start|><|image_pad|><|vision_end|> then <|vision_start|><|image_pad|><|vision_end|> a b c",
        "<|vision_start|><|image_pad|><|vision_end|> report",
    ]
    rows = processor(
        images=[pair for pair in films for _ in range(ROLLOUTS)],
        text=[text for text in texts for _ in range(ROLLOUTS)],
        padding=True,
        return_tensors="pt",
    )
    lengths = torch.tensor(LENGTHS).flatten()
    completion_mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    completion_ids = torch.randint(20, 400, (2 * ROLLOUTS, WIDTH))
    completion_ids[2] = completion_ids[1]
    return {
        "input_ids": torch.cat([rows["input_ids"], completion_ids], dim=1),
        "attention_mask": torch.cat([rows["attention_mask"], completion_mask], dim=1),
        "pixel_values": rows["pixel_values"],
        "image_grid_thw": rows["image_grid_thw"],
        "num_images": [2] * ROLLOUTS + [1] * ROLLOUTS,
        "mm_token_type_ids": torch.cat([rows["mm_token_type_ids"], torch.zeros_like(completion_ids)], dim=1),
    }


def _film(height: int, width: int) -> Image.Image:
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())


def shared(batch: dict) -> dict:
    """The same batch with the films of a study held once."""
    patches = [int(grid.prod(-1).sum()) for grid in batch["image_grid_thw"].split(batch["num_images"])]
    of_rows = batch["pixel_values"].split(patches)
    return {**batch, "pixel_values": Films(of_rows[row - row % ROLLOUTS] for row in range(len(of_rows)))}


def scores(trainer: GRPOTrainer, model: torch.nn.Module, batch: dict, **options: object) -> tuple[torch.Tensor, ...]:
    given = dict(batch)
    ids, mask = given.pop("input_ids"), given.pop("attention_mask")
    return trainer._get_per_token_logps_and_entropies(model, ids, mask, WIDTH, compute_entropy=True, **given, **options)


def gradients(trainer: GRPOTrainer, model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logps, entropies, _ = scores(trainer, model, batch)
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2))
    (logps * weights + 0.1 * entropies).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rows_at_once", [None, 8, 4, 2, 3], ids=["all", "both", "one", "half", "across"])
def test_log_probabilities_and_entropies_are_those_of_a_row_each(trainer, deep_model, batch, rows_at_once) -> None:
    with torch.no_grad():
        theirs, their_entropies, _ = scores(trainer, deep_model, batch)
        ours, our_entropies, _ = scores(trainer, deep_model, shared(batch), batch_size=rows_at_once)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(our_entropies, their_entropies, atol=1e-5, rtol=0)


def test_they_are_those_of_each_rollout_alone_without_any_padding(trainer, deep_model, batch) -> None:
    """Against a plain forward pass of transformers, which finds the positions itself."""
    with torch.no_grad():
        ours, _, _ = scores(trainer, deep_model, shared(batch))
        grids = batch["image_grid_thw"].split(batch["num_images"])
        films = batch["pixel_values"].split([int(grid.prod(-1).sum()) for grid in grids])
        for row, (grid, film) in enumerate(zip(grids, films, strict=True)):
            seen = batch["attention_mask"][row].bool()
            ids = batch["input_ids"][row][seen][None]
            kinds = batch["mm_token_type_ids"][row][seen][None]
            logits = deep_model(input_ids=ids, pixel_values=film, image_grid_thw=grid, mm_token_type_ids=kinds).logits
            tokens = LENGTHS[row // ROLLOUTS][row % ROLLOUTS]
            log_probs = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            torch.testing.assert_close(ours[row, :tokens], log_probs[len(log_probs) - tokens :], atol=1e-5, rtol=0)
            assert (ours[row, tokens:] == 0).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_a_row_each(trainer, deep_model, batch, checkpointing) -> None:
    theirs = gradients(trainer, deep_model, batch)
    if checkpointing:
        deep_model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        ours = gradients(trainer, deep_model, shared(batch))
    finally:
        deep_model.gradient_checkpointing_disable()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_in_bfloat16_they_are_as_near_as_trls_own_rows_are(trainer, deep_model, batch, monkeypatch) -> None:
    """To float32's, in batches of two sizes of TRL's."""
    with torch.no_grad():
        exact = scores(trainer, deep_model, batch)[0]
        monkeypatch.setattr(trainer.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
        theirs = [scores(trainer, deep_model, batch, batch_size=size)[0] for size in (1, 8)]
        ours = scores(trainer, deep_model, shared(batch))[0]
    allowed = max((logps - exact).abs().mean() for logps in theirs)
    assert 0 < (ours - exact).abs().mean() <= 1.5 * allowed


def test_a_study_of_which_every_report_is_cut_has_a_gradient_of_nothing(trainer, deep_model, batch) -> None:
    masked = {**batch, "attention_mask": batch["attention_mask"].clone()}
    masked["attention_mask"][:, -WIDTH:] = 0
    logps, entropies, _ = scores(trainer, deep_model, shared(masked))
    assert (logps == 0).all()
    assert (entropies == 0).all()
    logps.sum().backward()


def test_studies_of_equal_prompts_and_different_films_stay_apart() -> None:
    one, other = torch.zeros(4, 3), torch.zeros(4, 3)
    assert groups_of([one, one, other, other, one]) == [range(0, 2), range(2, 4), range(4, 5)]


def test_a_row_holds_the_prompt_once_and_equal_reports_once() -> None:
    prompt, report, longer = torch.tensor([5, 6, 7]), torch.tensor([8, 9]), torch.tensor([8, 9, 10])
    packed = pack_studies([prompt], [torch.arange(3).expand(3, 3)], [[report, report, longer]], 4, 0)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 7, 8, 9, 10]]
    assert packed.position_ids[0].tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 5]]
    assert packed.scored.sum(1).tolist() == [2, 2, 3]
    assert packed.place[0, :2].tolist() == packed.place[1, :2].tolist() == [2, 3]
    (row,) = packed.rows
    assert row.prompt == 2
    assert row.tokens.tolist() == [[2, 3, 4, 2], [5, 6, 7, 8]]  # the shorter one is filled
    assert row.back.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert row.visible[1].tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "eager", "flex_attention"])
def test_attention_that_cannot_share_a_prompt_is_refused(attention: str) -> None:
    with pytest.raises(RecipeError, match=f"{attention}.*share_prompts: false"):
        check_attention(attention)
    check_attention("sdpa")
    check_attention(None)


# ---- whole runs ------------------------------------------------------------------------------------------------------

TIMES = ("step_time", "train_", "seconds/")


@pytest.mark.parametrize(
    "settings",
    [
        {"updates_per_generation": 2, "max_steps": 6, "mask_truncated_completions": True},
        {"recipe": "rl_step2", "beta": 0.1, "max_steps": 3, "per_device_train_batch_size": 2},
        {
            "recipe": "rl_step2",
            "beta": 0.1,
            "use_peft": True,
            "lora_r": 4,
            "lora_dropout": 0,
            "lora_target_modules": "all-linear",
        },
    ],
    ids=["step-1", "reference-policy-and-parts-of-studies", "adapter-off-as-reference"],
)
def test_a_run_logs_the_same_figures_with_and_without(settings, tiny_base, phantom_data, tmp_path) -> None:
    given = {"learning_rate": 1e-3, "save_strategy": "no", "top_entropy_quantile": 1.0, **settings}
    ours = grpo_run(tmp_path / "ours", tiny_base, phantom_data, **given)
    theirs = grpo_run(tmp_path / "theirs", tiny_base, phantom_data, share_prompts=False, **given)
    assert [seen.candidates for seen in ours.seen] == [seen.candidates for seen in theirs.seen]
    for one, other in zip(ours.log, theirs.log, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if not key.startswith(TIMES):
                assert one[key] == pytest.approx(value, abs=1e-4, rel=1e-3), key


@pytest.fixture
def processed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """How often each image was processed."""
    seen: Counter = Counter()
    native = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil._preprocess

    def counted(self, images, *args, **kwargs):
        seen.update(hash(image.tobytes()) for image in images)
        return native(self, images, *args, **kwargs)

    monkeypatch.setattr(image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil, "_preprocess", counted)
    return seen


def test_an_image_is_processed_once_a_generation_and_held_once(processed, tiny_base, phantom_data, tmp_path) -> None:
    run: Run = grpo_run(tmp_path / "run", tiny_base, phantom_data, max_steps=2, beta=0.1, save_strategy="no")
    (seen,) = run.seen
    images = {path for paths in seen.image_paths for path in paths}
    assert set(processed.values()) == {1}
    assert len(processed) == len(images)
    buffered = [films for batch in run.trainer._buffered_inputs for films in batch["pixel_values"]]
    assert len(buffered) == len(seen)
    held = {films.untyped_storage().data_ptr(): films.untyped_storage().nbytes() for films in buffered}
    assert sum(held.values()) == sum({films.data_ptr(): films.nbytes for films in buffered}.values())
    assert len({films.data_ptr() for films in buffered}) == len(set(seen.study_ids))


def test_times_of_the_parts_of_an_update_are_logged_and_do_not_overlap(tiny_base, phantom_data, tmp_path) -> None:
    run = grpo_run(tmp_path / "run", tiny_base, phantom_data, max_steps=2, beta=0.1, save_strategy="no")
    generated, reused = run.log
    parts = {"read", "generate", "score", "log-probabilities", "update"}
    assert {key.removeprefix("seconds/") for key in generated if key.startswith("seconds/")} == parts
    assert {key.removeprefix("seconds/") for key in reused if key.startswith("seconds/")} == {"update"}
    total = run.trainer.times.total
    assert sum(total.values()) <= run.trainer.state.log_history[-1]["train_runtime"]
    assert sum(entry["seconds/update"] for entry in run.log) == pytest.approx(total["update"])
