"""The checkpoint that comes with the package."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import dps_hf
from dps_hf.data.mixture import Mixture
from dps_hf.data.pictures import Pictures


FOLDER = Path(dps_hf.NANO)
MODEL_CODE = Path(dps_hf.__file__).parent / "model"


@pytest.fixture(scope="module")
def nano():
    return AutoModelForMultimodalLM.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)


def test_its_code_is_that_of_the_package():
    copies = list(FOLDER.glob("*.py"))
    assert {"modeling_dps.py", "processing_dps.py"} <= {path.name for path in copies}
    for copy in copies:
        assert copy.read_text() == (MODEL_CODE / copy.name).read_text(), f"{copy.name}: run examples/nano/release.py"


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


@torch.no_grad()
def test_it_rebuilds_emoji_that_it_never_saw(nano):
    model, _ = nano
    unseen = Pictures(Mixture({"dps_hf.nano.tasks.emoji_t2i": 1}, length=60, split="validation"))
    pixels = torch.stack([unseen[i]["pixel_values"] for i in range(60)])
    rebuilt = model.decode_image_tokens(model.encode_image(pixels))
    error = (rebuilt - pixels).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / error)).mean() > 23
