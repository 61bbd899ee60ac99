"""Whichever library quantises, and however it is asked to: only the decoder loses bits."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, BitsAndBytesConfig

import dps_hf  # noqa: F401  registers DPS with the Auto classes
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    make_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def many_pictures() -> torch.Tensor:
    return torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def torchao(**fields):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig(), **fields)


def quanto(**fields):
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    return QuantoConfig("int8", **fields)


QUANTISERS = {
    "4 bits": lambda: BitsAndBytesConfig(load_in_4bit=True),
    "4 bits, q_proj left alone": lambda: BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["q_proj"]),
    "8 bits": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "8 bits, nothing left alone": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[]),
    "8 bits as a dict": lambda: {"load_in_8bit": True, "llm_int8_skip_modules": ["q_proj"]},
    "torchao": torchao,
    "torchao, q_proj left alone": lambda: torchao(modules_to_not_convert=["q_proj.weight"]),
    "quanto": quanto,
    "quanto, q_proj left alone": lambda: quanto(modules_to_not_convert=["q_proj"]),
    "quanto as a dict": lambda: quanto().to_dict(),
}


def assert_only_the_decoder_is_quantised(model, reference, pictures) -> None:
    base, whole = (getattr(each, "model", each) for each in (model, reference))
    for part in ("image_tokenizer", "vision_tower", "connector"):
        modules = dict(base.get_submodule(part).named_modules())
        assert {name: type(module) for name, module in modules.items()} == {
            name: type(module) for name, module in whole.get_submodule(part).named_modules()
        }
        torch.testing.assert_close(
            base.get_submodule(part).state_dict(), whole.get_submodule(part).state_dict(), rtol=0, atol=0
        )
    for training in (True, False):
        assert torch.equal(model.train(training).encode_image(pictures), whole.encode_image(pictures))
    layer, exact = (each.language_model.layers[0].mlp.up_proj for each in (base, whole))
    assert type(layer) is not type(exact) or type(layer.weight) is not type(exact.weight), "the decoder is quantised"
    if isinstance(model, DPSForConditionalGeneration):
        assert type(model.lm_head) is nn.Linear and model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("model_class", [DPSModel, DPSForConditionalGeneration])
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_all_but_the_decoder_stays_whole(quantiser, model_class, folder, tiny_model, many_pictures):
    model = model_class.from_pretrained(folder, quantization_config=QUANTISERS[quantiser]())
    assert_only_the_decoder_is_quantised(model, tiny_model, many_pictures)
    if "q_proj" in quantiser:
        decoder = getattr(model, "model", model).language_model
        assert type(decoder.layers[0].self_attn.q_proj) is nn.Linear
        assert type(decoder.layers[0].self_attn.q_proj.weight) is nn.Parameter


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM])
@pytest.mark.parametrize("bits", [4, 8])
def test_auto_classes_leave_it_whole_too(auto_class, bits, folder, tiny_model, many_pictures):
    model = auto_class.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    assert_only_the_decoder_is_quantised(model, tiny_model, many_pictures)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_that_was_saved_quantised_is_whole_when_loaded_again(
    bits, folder, tiny_model, many_pictures, tmp_path
):
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    DPSForConditionalGeneration.from_pretrained(folder, quantization_config=quantization).save_pretrained(tmp_path)
    for model_class in (DPSForConditionalGeneration, AutoModel):
        assert_only_the_decoder_is_quantised(model_class.from_pretrained(tmp_path), tiny_model, many_pictures)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_image_tokenizer_stays_in_float32(dtype, bits, folder, tiny_model, many_pictures):
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = DPSForConditionalGeneration.from_pretrained(folder, quantization_config=quantization, dtype=dtype)
    assert {parameter.dtype for parameter in model.model.image_tokenizer.parameters()} == {torch.float32}
    assert model.model.vision_tower.dtype == model.model.connector.linear_1.weight.dtype == dtype
    assert torch.equal(model.encode_image(many_pictures), tiny_model.encode_image(many_pictures))


@pytest.mark.parametrize("given", [BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["q_proj"]),
                                   {"load_in_8bit": True, "llm_int8_skip_modules": ["q_proj"]}])  # fmt: skip
def test_what_the_caller_gives_stays_as_it_is(given, folder):
    before = copy.deepcopy(given)
    model = DPSForConditionalGeneration.from_pretrained(folder, quantization_config=given)
    assert given == before if isinstance(given, dict) else given.to_dict() == before.to_dict()
    assert "q_proj" in model.config.quantization_config.llm_int8_skip_modules


def test_an_untied_head_stays_whole(make_model, make_config, tmp_path, text_ids):
    reference = make_model(make_config(tie_word_embeddings=False))
    reference.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["q_proj"])
    model = DPSForConditionalGeneration.from_pretrained(tmp_path, quantization_config=quantization)
    assert type(model.lm_head) is nn.Linear
    torch.testing.assert_close(model.lm_head.weight, reference.lm_head.weight, rtol=0, atol=0)
