"""A trained model away from this repository: plain transformers loads it and writes the same report; its card says what it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from rl_runs import options

from evaluation.predictions import studies_of_data
from foundation.errors import RecipeError
from foundation.files import write_json
from foundation.weights_lock import Lock
from model.card import card_text, example, write_model_card
from model.engines import GenerationSettings, make_writer, open_images
from model.fingerprint import model_fingerprint
from model.processor import load_processor
from model.prompts import build_prompt
from recipes import sft

# Greedy decoding with nothing of this repository importable: images, prompt parts and folder come as files and arguments.
ELSEWHERE = """
import json, sys
from importlib.util import find_spec
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

assert find_spec("recipes") is None
folder, messages = sys.argv[1], json.load(open("messages.json"))
images = [Image.open(f"{i}.png") for i in range(sum(part["type"] == "image" for part in messages[0]["content"]))]
if find_spec("torchvision"):
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=images, return_tensors="pt")
else:  # transformers builds no Qwen3-VL processor here, but says so
    try:
        AutoProcessor.from_pretrained(folder)
        sys.exit("AutoProcessor gave something that is no vision processor")
    except ImportError as error:
        assert "orchvision" in str(error), error
    tokenizer, reader = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = reader(images=images, return_tensors="pt")
    for grid in inputs["image_grid_thw"]:
        text = text.replace("<|image_pad|>", "<image>" * (int(grid.prod()) // reader.merge_size**2), 1)
    inputs |= tokenizer(text.replace("<image>", "<|image_pad|>"), return_tensors="pt")
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
model = AutoModelForImageTextToText.from_pretrained(folder)
tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)
print(json.dumps(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)))
"""


@pytest.fixture(scope="module")
def final(tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`final/` of a few SFT steps, as `make sft` leaves it."""
    out = tmp_path_factory.mktemp("runs") / "small" / "sft"
    given = {
        "model_name_or_path": tiny_base,
        "data_dir": phantom_data,
        "output_dir": out,
        "datasets": "phantom_prairie",
    }
    given |= {"max_steps": 12, "learning_rate": 3e-3, "warmup_steps": 0, "global_batch_size": 4, "save_strategy": "no"}
    given |= {"per_device_train_batch_size": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sft", "--config", "recipes/demo/sft.yaml", *options(given)])
        sft.main()
    return out / "final"


def test_plain_transformers_writes_the_same_report(final: Path, phantom_data: Path, tmp_path: Path) -> None:
    settings = GenerationSettings(max_new_tokens=24, engine="transformers")
    study = next(s for s in studies_of_data(phantom_data / "phantom_prairie", "test") if s["prior_report"])
    ((report, _),) = make_writer(str(final), settings)([study])
    assert report
    (tmp_path / "messages.json").write_text(json.dumps(build_prompt(study)))
    for number, image in enumerate(open_images(study, settings)):
        image.save(tmp_path / f"{number}.png")
    run = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(final)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout).strip() == report


def test_files_name_classes_that_transformers_has_and_hold_no_training_state(final: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((final / name).read_text())
        assert content["processor_class"] == "Qwen3VLProcessor"
        assert hasattr(transformers, content["processor_class"])
    assert not list(final.glob("*.bin"))
    assert not (final.parent / "README.md").exists()  # TRL's, of no base model and no data


def test_processor_of_the_hubs_files_loads_here(final: Path, tmp_path: Path) -> None:
    """The hub's Qwen3-VL have `preprocessor_config.json`, of an image processor that wants torchvision, and no
    `processor_config.json`; earlier checkpoints of ours name a class of this repository."""
    for file in final.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    images = json.loads((final / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**images, "image_processor_type": "Qwen2VLImageProcessorFast"})
    )
    (tmp_path / "processor_config.json").unlink()
    ours = load_processor(str(final))
    theirs = load_processor(str(tmp_path))
    films = [Image.radial_gradient("L").convert("RGB").resize((96, 96))]
    text = "<|vision_start|><|image_pad|><|vision_end|> report"
    made = [processor(text=[text], images=films, return_tensors="pt") for processor in (ours, theirs)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    (tmp_path / "processor_config.json").write_text(
        (final / "processor_config.json").read_text().replace("Qwen3VLProcessor", "ImageQwen3VLProcessor")
    )
    assert load_processor(str(tmp_path)).image_processor.size == ours.image_processor.size


def test_a_folder_without_image_settings_is_one_line(final: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((final / name).read_bytes())
    with pytest.raises(RecipeError, match=r"cannot load the processor of .*"):
        load_processor(str(tmp_path))


def test_card_says_what_the_model_is(final: Path) -> None:
    card = ModelCard.load(final / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.datasets == ["phantom_prairie"]
    assert "supervised fine-tuning on phantom_prairie" in card.content
    assert "no patient data" in card.content
    assert "Given the image and the context, provide the report" in card.content
    assert "Not evaluated yet" in card.content
    assert str(final.parent) not in card.content  # no folder of this machine
    for code in re.findall(r"```python\n(.*?)```", card.content, re.S):
        compile(code, "card", "exec")
        assert len(code.strip().splitlines()) <= 11


def test_card_has_terms_of_all_stages_base_of_the_hub_and_scores_of_this_model_alone(tmp_path: Path) -> None:
    base, run, data = tmp_path / "weights" / "Base-8B", tmp_path / "outputs" / "run", tmp_path / "data"
    base.mkdir(parents=True)
    entry = {"repository": "Someone/Base-8B", "revision": "0", "size": 1, "sha256": "0"}
    Lock({"Base-8B/config.json": entry}, []).write(base.parent)
    (data / "mimic").mkdir(parents=True)
    terms = {"title": "MIMIC-CXR", "licence": "PhysioNet: no redistribution", "credentialed": True}
    write_json(data / "mimic" / "card.json", terms)
    earlier = {"model_name_or_path": str(base), "datasets": ["mimic"], "data_dir": str(data)}
    later = {"model_name_or_path": str(run / "sft" / "final"), "datasets": ["iu_xray"], "data_dir": str(data)}
    for stage, settings in (("sft", earlier), ("rl_step1", later)):
        (run / stage / "final").mkdir(parents=True)
        write_json(run / stage / "settings.json", settings)
    for name, fingerprint, mean in (("rl_step1", "mine", 0.5), ("other", "others", 0.9)):
        folder = run / "eval" / "mimic" / name
        folder.mkdir(parents=True)
        write_json(folder / "generation.json", {"made_by": {"model_sha256": fingerprint}})
        write_json(folder / "scores.json", {"metrics": {"bleu2": {"mean": mean, "low": 0.4, "high": 0.6}}})
    text = card_text(run / "rl_step1" / "final", "mine")
    assert "base_model: Someone/Base-8B" in text
    assert "PhysioNet: no redistribution. Neither its reports" in text
    assert "supervised fine-tuning on mimic, then GRPO, step 1 on iu_xray" in text
    assert "| mimic | bleu2 | 0.500 [0.400, 0.600] |" in text
    assert "0.900" not in text


@pytest.mark.skipif(find_spec("torchvision") is None, reason="Qwen3-VL's own processor needs torchvision")
def test_example_of_the_card_runs(final: Path, tmp_path: Path) -> None:
    from model.card import _TRANSFORMERS

    Image.radial_gradient("L").save(tmp_path / "film.png")
    code = example(_TRANSFORMERS, str(final)).replace("512", "8")
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)


def test_card_is_written_again_with_scores(final: Path, tmp_path: Path) -> None:
    fingerprint = model_fingerprint(str(final))
    folder = final.parent.parent / "eval" / "phantom_prairie" / "sft"
    folder.mkdir(parents=True)
    write_json(folder / "generation.json", {"made_by": {"model_sha256": fingerprint}})
    write_json(folder / "scores.json", {"metrics": {"bleu2": {"mean": 0.25, "low": None, "high": None}}})
    write_model_card(final, fingerprint)
    assert "| phantom_prairie | bleu2 | 0.250 |" in (final / "README.md").read_text()
    assert model_fingerprint(str(final)) == fingerprint
