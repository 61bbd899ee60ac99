"""Parts with random weights are named, refused if they would stay frozen, and trained beside LoRA."""

import pytest
import torch
from peft import PeftModel
from trl import ModelConfig, SFTConfig

from dps_hf.components import find_new_tokens, find_untrained_parts, from_components, replace_image_tokenizer
from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.serving.gguf import export
from dps_hf.training.trained_parts import choose_trained_parts, find_tables


LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}
FRESH = {"connector": 1e-3, "new_tokens": 1e-2}


@pytest.fixture(params=["text", "untied"])
def new_model(request, shrunk_parts, tmp_path) -> str:
    model, processor = from_components(shrunk_parts[request.param], shrunk_parts["vision"], shrunk_parts["codes"])
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    return str(tmp_path / "new")


@pytest.fixture
def sft(example, tmp_path, monkeypatch):
    """Runs sft.py on captions of coloured squares."""
    name = f"captions_{tmp_path.parent.name}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "from PIL import Image\n"
        "from dps_hf.data.record import record\n"
        "def captions():\n"
        "    colours = ['red', 'green', 'blue', 'white'] * 4\n"
        "    pictures = [(colour, Image.new('RGB', (16, 16), colour)) for colour in colours]\n"
        "    return [record('draw', [colour], [picture]) for colour, picture in pictures] + [\n"
        "        record('read', [picture, 'What?'], [colour]) for colour, picture in pictures]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = example("sft.py")

    def run(model: str, train: dict, lora: dict = LORA, output: str = "run", **fields):
        script = module.ScriptArguments(dataset=f"{name}.captions", train=train, prompt_dropout=0.0)
        training = {"max_steps": 3, "per_device_train_batch_size": 8, "use_cpu": True, "bf16": False, "seed": 0}
        training |= {"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-3}
        training |= {"assistant_only_loss": True, "gradient_checkpointing": False, "save_strategy": "no", **fields}
        module.main(script, SFTConfig(str(tmp_path / output), **training), ModelConfig(model, **lora))
        return tmp_path / output

    return run


def test_a_model_of_parts_says_what_is_random_and_still_does_when_it_is_loaded(new_model):
    model = DPSForConditionalGeneration.from_pretrained(new_model)
    assert find_untrained_parts(model.config) == ["connector", "new_tokens"]
    # <think>, </think>, three tokens of pictures, 16 codes; the tokenizer knew <|im_start|> and <|im_end|>
    assert find_new_tokens(model.config) == list(range(259, 259 + 5 + 16))


@pytest.mark.parametrize(
    "train, adapter, named",
    [
        ({}, True, "connector and new_tokens of this model are still random.*connector: 1.0e-3, new_tokens: 1.0e-3}"),
        ({"connector": 1e-3}, True, "new_tokens of this model is still random.*Add train: {new_tokens: 1.0e-3}"),
        ({"new_tokens": 0}, True, "connector of this model is still random"),
    ],
)
def test_lora_beside_random_parts_is_refused_by_name(new_model, train, adapter, named, sft):
    with pytest.raises(ValueError, match=named):
        sft(new_model, train)


def test_random_parts_may_stay_frozen_if_the_recipe_says_so(new_model, sft):
    output = sft(new_model, {"connector": 0, "new_tokens": 0})
    assert (output / "adapter_model.safetensors").exists()


def test_lora_with_random_parts_saves_reloads_merges_and_exports(new_model, sft, example, tmp_path, capsys):
    output = sft(new_model, FRESH)
    printed = capsys.readouterr().out
    assert "decoder" in printed and "new_tokens" in printed and "at 0.01" in printed
    base = DPSForConditionalGeneration.from_pretrained(new_model)
    adapted = PeftModel.from_pretrained(DPSForConditionalGeneration.from_pretrained(new_model), output).eval()
    merge = example("merge_adapter.py")
    merge.main(merge.ScriptArguments(str(output), str(tmp_path / "merged")), ModelConfig())
    merged = DPSForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    ids, pixels = torch.tensor([[base.config.image_token_id] * 4 + [70, 262, 265, 271]]), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected, got, before = (
            model(input_ids=ids, pixel_values=pixels).logits for model in (adapted, merged, base.eval())
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert (len(find_tables(merged)) == 1) == merged.config.tie_word_embeddings == base.config.tie_word_embeddings
    new = find_new_tokens(base.config)
    for table, was in zip(find_tables(merged), find_tables(base), strict=True):
        assert torch.equal(table[:259], was[:259]) and not torch.equal(table[new], was[new])
    assert not torch.equal(merged.model.connector.linear_1.weight, base.model.connector.linear_1.weight)
    assert find_untrained_parts(merged.config) == [] and "untrained_parts" not in merged.config.to_dict()
    assert all(path.exists() for path in export(tmp_path / "merged", tmp_path / "gguf", "f32"))


def test_a_full_training_removes_the_mark(new_model, sft):
    output = sft(new_model, {}, lora={})
    assert find_untrained_parts(DPSForConditionalGeneration.from_pretrained(output).config) == []


def test_a_part_that_saw_no_picture_keeps_its_mark_and_is_named(new_model, sft, tmp_path, capsys):
    next(tmp_path.glob("captions_*.py")).write_text(
        "from dps_hf.data.record import record\n"
        "def captions():\n"
        "    return [record('facts', ['Hello?'], ['Hi!'])] * 32\n"
    )
    output = sft(new_model, {}, lora={}, output="words")
    assert "connector had no gradient: no record of this training has a picture" in capsys.readouterr().out
    assert find_untrained_parts(DPSForConditionalGeneration.from_pretrained(output).config) == ["connector"]


def test_another_image_tokenizer_makes_new_tokens_random_again(make_model, tiny_processor):
    model = make_model()
    assert find_untrained_parts(model.config) == []
    codes = DPSImageTokenizerConfig(image_size=16, patch_size=4, hidden_sizes=(8, 16), num_res_blocks=1, levels=(4, 4))
    replace_image_tokenizer(model, tiny_processor, DPSImageTokenizer(codes))
    with pytest.raises(ValueError, match="new_tokens of this model is still random"):
        choose_trained_parts(model, {}, 1e-3, adapter=True)
    choose_trained_parts(model, {}, 1e-3)


def test_eight_bits_beside_random_parts(new_model, sft, example, tmp_path):
    output = sft(new_model, FRESH, lora={**LORA, "load_in_8bit": True})
    merge = example("merge_adapter.py")
    merge.main(merge.ScriptArguments(str(output), str(tmp_path / "merged")), ModelConfig(load_in_8bit=True))
    merged = DPSForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert find_untrained_parts(merged.config) == []
