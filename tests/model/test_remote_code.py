"""A saved DPS loads where the package is absent."""

import json
import os
import subprocess
import sys

import pytest

from dps_hf.model.configuration_dps import AUTO_MAP


FILES = {
    "configuration_dps.py",
    "generation_dps.py",
    "image_processing_dps.py",
    "image_tokenizer_dps.py",
    "library_dps.py",
    "loss_dps.py",
    "modeling_dps.py",
    "processing_dps.py",
    "windows_dps.py",
}

# Loads a folder through every Auto class, lets it write and draw, saves it anew, and does all that from there again.
SCRIPT = """
import importlib.abc
import sys
import warnings

folder, again = sys.argv[1:]


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "dps_hf":
            raise ModuleNotFoundError("No module named 'dps_hf'", name="dps_hf")


sys.meta_path.insert(0, Absent())

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto import modeling_auto


def generate(folder):
    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    image_processor = AutoImageProcessor.from_pretrained(folder, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    classes = (AutoModelForMultimodalLM, AutoModelForImageTextToText, AutoModelForCausalLM)
    base = AutoModel.from_pretrained(folder, **trust)
    models = [auto_class.from_pretrained(folder, **trust) for auto_class in classes]
    model = models[0]
    names = [type(thing).__name__ for thing in (config, image_processor, processor, base, *models)]
    expected = ["DPSConfig", "DPSImageProcessor", "DPSProcessor", "DPSModel"] + 3 * ["DPSForConditionalGeneration"]
    assert names == expected, names
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.image_token == "<image>" and tokenizer.image_token_id == config.image_token_id

    message = {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (9, 7), "red")}]}
    inputs = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    pixels = image_processor(message["content"][0]["image"], return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], pixels)
    for other in models[1:]:
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)
    text = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    drawing = model.generate(**inputs, generation_mode="image", do_sample=False)
    texts = processor.post_process_multimodal_output(text, generation_mode="text")
    pictures = processor.post_process_multimodal_output(model.decode_image_tokens(drawing), generation_mode="image")
    return model, processor, (texts, pictures[0].tobytes())


model, processor, outputs = generate(folder)
for names in (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,  # and label smoothing for this
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
):
    assert names["dps"] == "DPSForConditionalGeneration"  # `transformers serve` asks for this
model.save_pretrained(again)
processor.save_pretrained(again)
assert generate(again)[2] == outputs

assert not [name for name in sys.modules if name.partition(".")[0] == "dps_hf"]
print("fine")
"""


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "saved"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def test_saved_folder_holds_every_file_and_the_whole_map(saved):
    assert {path.name for path in saved.glob("*.py")} == FILES
    assert json.loads((saved / "config.json").read_text())["auto_map"] == AUTO_MAP
    processor_config = json.loads((saved / "processor_config.json").read_text())
    assert processor_config["auto_map"] == {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    assert processor_config["image_processor"]["auto_map"]["AutoImageProcessor"] == AUTO_MAP["AutoImageProcessor"]


@pytest.mark.parametrize("name", ["DPSModel", "DPSForConditionalGeneration"])
def test_model_alone_brings_every_file(tiny_model, tmp_path, name):
    model = tiny_model if type(tiny_model).__name__ == name else tiny_model.model
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == FILES
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_saved_code_imports_nothing_but_its_neighbours_and_libraries(saved):
    allowed = {*sys.stdlib_module_names, "PIL", "huggingface_hub", "numpy", "torch", "transformers"}
    from transformers.dynamic_module_utils import get_imports, get_relative_imports

    for path in saved.glob("*.py"):
        assert set(get_imports(path)) <= allowed
        assert {f"{name}.py" for name in get_relative_imports(path)} <= FILES


def load_without_the_package(folder, tmp_path) -> None:
    """Runs `SCRIPT` on a saved model and its processor, in a process of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(folder), str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "fine\n", result.stderr[-4000:]


def test_saved_folder_works_without_the_package(saved, tmp_path):
    load_without_the_package(saved, tmp_path)
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == FILES
