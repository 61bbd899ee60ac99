"""The checkpoint that comes with the package."""

from copy import copy, deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import dps_hf
from dps_hf.data.mixture import Mixture
from dps_hf.data.pictures import Pictures
from dps_hf.inference import ask
from dps_hf.nano.scenes import HALF_WHITE, render, sample_split
from dps_hf.nano.wording import write_caption


FOLDER = Path(dps_hf.NANO)
MODEL_CODE = Path(dps_hf.__file__).parent / "model"


@pytest.fixture(scope="module")
def nano():
    return AutoModelForMultimodalLM.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)


def test_its_code_is_that_of_the_package():
    copies = list(FOLDER.glob("*.py"))
    assert {"modeling_dps.py", "processing_dps.py"} <= {path.name for path in copies}
    for path in copies:
        assert path.read_text() == (MODEL_CODE / path.name).read_text(), f"{path.name}: run examples/nano/release.py"


def test_it_is_small_and_holds_weights_as_safetensors_only(nano):
    model, _ = nano
    assert model.num_parameters() <= 12_000_000
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 25_000_000
    assert {path.suffix for path in FOLDER.iterdir()} <= {".json", ".jinja", ".md", ".png", ".py", ".safetensors"}


def test_it_loads_in_float32(nano):
    model, _ = nano
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_it_draws_and_answers(nano):
    model, processor = nano
    chat = [{"role": "user", "content": [{"type": "text", "text": "a big red circle"}]}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    drawing = model.generate(**processor.apply_chat_template(chat, **options), generation_mode="image")
    picture = processor.post_process_multimodal_output(model.decode_image_tokens(drawing), generation_mode="image")[0]
    assert picture.size == (64, 64)
    chat[0]["content"] = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the picture."}]
    inputs = processor.apply_chat_template(chat, **options)
    answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert answer[-1] == model.config.eos_token_id
    assert processor.decode(answer, skip_special_tokens=True).strip()


def test_it_describes_pictures_that_are_not_square_better_than_with_grey_bars(nano):
    model, processor = nano
    random = np.random.default_rng(0)
    scenes = [sample_split(random, "validation", 1, grounds=HALF_WHITE) for _ in range(8)]
    centres = [scene.things[0].y for scene in scenes]
    strips = [render(scene).crop((0, max(y - 22, 0), 64, min(y + 22, 64))) for scene, y in zip(scenes, centres)]

    def count_right(fit: str) -> int:
        images = deepcopy(processor.image_processor)
        images.fit = fit
        changed = copy(processor)
        changed.image_processor = images
        answers = ask(model, changed, ["Describe the picture."] * len(strips), strips)
        return sum(answer.text == write_caption(scene) for answer, scene in zip(answers, scenes))

    assert processor.image_processor.fit == "pad-edge"
    assert count_right("pad-edge") >= 6 > 2 >= count_right("pad-grey")


@torch.no_grad()
def test_it_rebuilds_emoji_that_it_never_saw(nano):
    model, _ = nano
    unseen = Pictures(Mixture({"dps_hf.nano.tasks.emoji_t2i": 1}, length=60, split="validation"))
    pixels = torch.stack([unseen[i]["pixel_values"] for i in range(60)])
    rebuilt = model.decode_image_tokens(model.encode_image(pixels))
    error = (rebuilt - pixels).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / error)).mean() > 23
