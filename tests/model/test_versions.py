"""The same tokens from every version of transformers, and caches by either of their names."""

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForMultimodalLM, AutoProcessor, DynamicCache

import dps_hf
from dps_hf.model.library_dps import CACHE, RUNS_ON


@pytest.fixture(scope="module")
def nano():
    return AutoModelForMultimodalLM.from_pretrained(dps_hf.NANO).eval(), AutoProcessor.from_pretrained(dps_hf.NANO)


@pytest.fixture(scope="module")
def chat(nano):
    def apply(*parts, **template):
        fields = {
            "add_generation_prompt": True,
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
            **template,
        }
        return nano[1].apply_chat_template([{"role": "user", "content": list(parts)}], **fields)

    return apply


@pytest.fixture(scope="module")
def question(chat):
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill="blue")
    parts = {"type": "image", "image": picture}, {"type": "text", "text": "What colour is the circle?"}
    return chat(*parts, enable_thinking=True)


# Of dps-nano on transformers 5.23.0. The likeliest token leads by 0.26 and more, so that rounding decides nothing.
DRAWING = "5d1ae6f2316d"
ANSWER = "63a847f2b719"
DRAWN = {"generation_mode": "image", "guidance_scale": 1.0}
EXPECTED = {
    "an answer": (ANSWER, {}),
    "an answer by beams": (ANSWER, {"num_beams": 3}),
    "an answer with a static cache": (ANSWER, {"cache_implementation": "static"}),
    "an answer by prompt lookup": (ANSWER, {"prompt_lookup_num_tokens": 3}),
    "an answer with an assistant": (ANSWER, {"assistant_model": None}),
    "a drawing": (DRAWING, DRAWN),
    "a drawing with guidance": (DRAWING, {"generation_mode": "image", "guidance_scale": 3.0}),
    "a drawing by beams": (DRAWING, {**DRAWN, "num_beams": 2}),
    "a drawing with a static cache": (DRAWING, {**DRAWN, "cache_implementation": "static"}),
    "a drawing with guidance and a static cache": (
        DRAWING,
        {"generation_mode": "image", "guidance_scale": 3.0, "cache_implementation": "static"},
    ),
    "a drawing among words": ("42e7288b678c", {"generation_mode": "interleaved", "max_new_tokens": 200}),
    "a drawing among words with guidance": (
        "42e7288b678c",
        {"generation_mode": "interleaved", "max_new_tokens": 200, "guidance_scale": 3.0},
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_way_of_decoding_gives_the_tokens_that_it_gave_on_5_23(nano, chat, question, name):
    expected, options = EXPECTED[name]
    inputs = question if expected == ANSWER else chat({"type": "text", "text": "a big red heart"})
    if "assistant_model" in options:
        options = {"assistant_model": nano[0]}
    generated = nano[0].generate(**inputs, do_sample=False, **options)[0, inputs["input_ids"].shape[1] :]
    assert hashlib.sha256(str(generated.tolist()).encode()).hexdigest().startswith(expected)


def test_a_training_step_gives_the_losses_that_it_gave_on_5_23(question):
    model = AutoModelForMultimodalLM.from_pretrained(dps_hf.NANO)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        losses.append(model(**question, labels=question["input_ids"]).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(torch.stack(losses), torch.tensor([11.69786, 8.945524]), rtol=1e-4, atol=0)


# Both names of the cache


@pytest.mark.parametrize("name", ["cache", "past_key_values", "by position"])
@pytest.mark.parametrize("part", ["whole", "base"])
def test_forward_reads_a_cache_by_either_name(tiny_model, text_ids, name, part):
    model = tiny_model if part == "whole" else tiny_model.model
    cache = DynamicCache(config=model.config.get_text_config())
    whole = model(text_ids)[0]
    model(text_ids[:, :4], cache=cache)
    rest = text_ids[:, 4:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        outputs = model(rest, None, None, None, cache) if name == "by position" else model(rest, **{name: cache})
    torch.testing.assert_close(outputs[0], whole[:, 4:], rtol=1e-4, atol=1e-4)
    assert outputs[CACHE].get_seq_length() == 7


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("mode", ["text", "interleaved"])
def test_generate_goes_on_from_a_cache_by_either_name(tiny_model, text_ids, name, mode):
    options = {"generation_mode": mode, "max_new_tokens": 4, "do_sample": False}
    cache = DynamicCache(config=tiny_model.config.get_text_config())
    tiny_model(text_ids[:, :6], cache=cache)
    seen = []
    hook = tiny_model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    generated = tiny_model.generate(text_ids, **{name: cache}, **options)
    hook.remove()
    assert generated.equal(tiny_model.generate(text_ids, **options))
    assert seen[0] == 1  # six of seven tokens were in the cache


@pytest.mark.parametrize("name", ["past", "past_key_value", "cache_params", "kv_cache", "memory"])
def test_a_cache_by_a_name_that_no_version_knows_is_refused(tiny_model, text_ids, name):
    cache = DynamicCache(config=tiny_model.config.get_text_config())
    for model in (tiny_model, tiny_model.model):
        with pytest.raises(TypeError, match=rf"cache or past_key_values; got {name}\. Rename it"):
            model(text_ids, **{name: cache})
    with pytest.raises((TypeError, ValueError), match=name):
        tiny_model.generate(text_ids, max_new_tokens=2, **{name: cache})


def test_two_caches_are_refused(tiny_model, text_ids):
    caches = [DynamicCache(config=tiny_model.config.get_text_config()) for _ in range(2)]
    with pytest.raises(TypeError, match="takes one cache"):
        tiny_model(text_ids, cache=caches[0], past_key_values=caches[1])


# What no version of the library can be


SCRIPT = """
import sys
import transformers
{}
from transformers import AutoModelForMultimodalLM, AutoProcessor
for auto_class in (AutoProcessor, AutoModelForMultimodalLM):
    try:
        auto_class.from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
CHANGES = {
    "an old one": "transformers.__version__ = '5.5.0'",
    "a class is gone": "del sys.modules['transformers.processing_utils'].MultiModalData",
    "the cache has a third name": (
        "transformers.GenerationMixin.prepare_inputs_for_generation = lambda self, input_ids, keys_and_values: None"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_version_that_it_cannot_run_on_is_told_in_one_sentence(tmp_path, change):
    script = "import transformers.processing_utils\n" + SCRIPT.format(CHANGES[change])
    code = Path(dps_hf.NANO)
    result = subprocess.run(
        [sys.executable, "-I", "-c", script, str(code)], cwd=tmp_path, capture_output=True, text=True
    )
    lines = result.stdout.splitlines()
    assert lines and all(line.startswith(f"DPS runs on transformers {RUNS_ON}; this is ") for line in lines), (
        result.stderr
    )
