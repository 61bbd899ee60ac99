"""Pushing with huggingface_hub to a local server that implements the protocol of the Hub."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from hub_server import TOKEN, HubServer
from huggingface_hub import DatasetCard, HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from pyarrow import parquet

import dps_hf
from dps_hf.hub.cards import model_card
from dps_hf.hub.push import push


CARD = "---\nlicense: mit\n---\n# tiny\n"
ADAPTER_CARD = "---\nlicense: mit\nbase_model: me/tiny\n---\n# adapter\n"

# Everything that somebody without the package does with what was pushed.
SCRIPT = """
import importlib.abc
import json
import sys

revision, again = sys.argv[1:]


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "dps_hf":
            raise ModuleNotFoundError("No module named 'dps_hf'", name="dps_hf")


sys.meta_path.insert(0, Absent())

import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

ids = torch.tensor([[72, 105]])


def load(name, **options):
    return AutoModelForMultimodalLM.from_pretrained(name, trust_remote_code=True, **options)


model, newest = load("me/tiny", revision=revision), load("me/tiny")
processor = AutoProcessor.from_pretrained("me/tiny", revision=revision, trust_remote_code=True)
logits = {"pinned": model(input_ids=ids).logits, "newest": newest(input_ids=ids).logits}
drawing = model.generate(input_ids=ids, generation_mode="image", do_sample=False)
picture = processor.post_process_multimodal_output(model.decode_image_tokens(drawing), generation_mode="image")[0]

model.push_to_hub("me/" + again)
processor.push_to_hub("me/" + again)
logits["again"] = load("me/" + again)(input_ids=ids).logits
AutoProcessor.from_pretrained("me/" + again, trust_remote_code=True)

adapted = PeftModel.from_pretrained(load("me/tiny", revision=revision), "me/adapter")
logits["adapted"] = adapted(input_ids=ids).logits

rows = load_dataset("me/preferences", split="train")
assert not [name for name in sys.modules if name.partition(".")[0] == "dps_hf"]
sums = {name: value.double().sum().item() for name, value in logits.items()}
pixel = rows[0]["images"][0].getpixel((0, 0))
print(json.dumps({"sums": sums, "size": picture.size, "pixel": pixel, "rows": len(rows)}))
"""


PIPELINE = """
import json
import sys

import torchvision
from transformers import pipeline

pipe = pipeline("any-to-any", model="me/nano", trust_remote_code=True)
(drawn,) = pipe([{"role": "user", "content": [{"type": "text", "text": "a big red heart"}]}], generation_mode="image")
picture = drawn["generated_image"]
content = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the picture."}]
(said,) = pipe([{"role": "user", "content": content}], return_full_text=False)
assert not [name for name in sys.modules if name.partition(".")[0] == "dps_hf"]
print(json.dumps({"pixel": picture.getpixel((32, 32)), "text": said["generated_text"]}))
"""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(server):
    return HfApi(endpoint=server.url, token=TOKEN)


@pytest.fixture
def saved(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_processor.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def adapter(make_model, tmp_path):
    """An adapter that changes what the model says, saved as one trained from a folder is."""
    model = get_peft_model(
        make_model(), LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    )
    model.peft_config["default"].base_model_name_or_path = "/home/somebody/runs/tiny"
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()


@pytest.fixture
def preferences(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    rows = {"prompt": ["?"] * 3, "images": [[{"path": str(tmp_path / "red.png")}]] * 3, "judge": ["exact"] * 3}
    from datasets import Image as ImageFeature
    from datasets import List

    split = Dataset.from_dict(rows).cast_column("images", List(ImageFeature()))
    DatasetDict({"train": split}).save_to_disk(tmp_path / "preferences")
    return tmp_path / "preferences"


def test_a_push_is_one_commit_with_what_loading_needs_and_nothing_else(saved, server, api):
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "trainer_state.json",
        "all_results.json",
        "curves.png",
        "shown.png",
    ):
        (saved / name).write_text("{}")
    (saved / "checkpoint-1").mkdir()
    (saved / "checkpoint-1" / "model.safetensors").write_text("")
    (saved.parent / "LICENSE").write_text("Do what you like.")
    (saved.parent / "tiny-f16.gguf").write_bytes(b"GGUF")
    beside = [saved.parent / "LICENSE", saved.parent / "tiny-f16.gguf"]
    info = push(saved, "me/tiny", ModelCard(CARD + "![drawings](shown.png)\n"), beside=beside, api=api)
    assert [commit.sha for commit in server.commits["models", "me/tiny"]][1:] == [info.oid]
    files = set(server.files("me/tiny"))
    code = {path.name for path in saved.glob("*_dps.py")}
    assert code == {path.name for path in Path(dps_hf.NANO).glob("*_dps.py")}
    assert files == code | {
        *(
            ".gitattributes",
            "README.md",
            "LICENSE",
            "tiny-f16.gguf",
            "shown.png",
            "chat_template.jinja",
            "config.json",
        ),
        *("generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json"),
        "tokenizer_config.json",
    }


def test_a_second_push_sends_the_changed_file_alone(saved, server, api):
    push(saved, "me/tiny", ModelCard(CARD), api=api)
    server.received.clear()
    push(saved, "me/tiny", ModelCard(CARD + "More.\n"), exist_ok=True, api=api)
    assert dict(server.received) == {"README.md": len(CARD + "More.\n")}
    assert len(server.commits["models", "me/tiny"]) == 3
    push(saved, "me/tiny", ModelCard(CARD + "More.\n"), exist_ok=True, api=api)
    assert len(server.commits["models", "me/tiny"]) == 3, "nothing new is no commit"


def test_shards_take_the_place_of_older_weights(saved, tiny_model, server, api):
    push(saved, "me/tiny", ModelCard(CARD), api=api)
    (saved / "model.safetensors").unlink()
    tiny_model.save_pretrained(saved, max_shard_size="40KB")
    shards = {path.name for path in saved.glob("model-*-of-*.safetensors")}
    assert len(shards) > 1
    push(saved, "me/tiny", ModelCard(CARD), exist_ok=True, api=api)
    weights = {name for name in server.files("me/tiny") if ".safetensors" in name}
    assert weights == shards | {"model.safetensors.index.json"}
    (saved / min(shards)).unlink()
    with pytest.raises(ValueError, match=f"lacks {min(shards)}"):
        push(saved, "me/tiny", ModelCard(CARD), exist_ok=True, api=api)


@pytest.mark.parametrize("request_that_breaks", ["PUT /lfs", "POST .*/preupload", "POST .*/commit"])
def test_a_push_that_breaks_half_way_changes_nothing(saved, tiny_model, server, api, request_that_breaks, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    push(saved, "me/tiny", ModelCard(CARD), api=api)
    before = dict(server.files("me/tiny"))
    tiny_model.save_pretrained(saved, state_dict={k: v + 1 for k, v in tiny_model.state_dict().items()})
    server.break_at = request_that_breaks
    for name in ("me/tiny", "me/fresh"):
        with pytest.raises(ConnectionError, match=f"The push to {name} .* broke off"):
            push(saved, name, ModelCard(CARD), exist_ok=name == "me/tiny", api=api)
    assert dict(server.files("me/tiny")) == before
    assert set(server.files("me/fresh")) == {".gitattributes"}
    server.break_at = None
    push(saved, "me/fresh", ModelCard(CARD), api=api)  # what holds nothing yet may be filled
    assert server.files("me/fresh")["model.safetensors"] != before["model.safetensors"]


def test_a_change_at_the_same_time_is_not_overwritten(saved, server, api, monkeypatch):
    push(saved, "me/tiny", ModelCard(CARD), api=api)
    theirs = HfApi(endpoint=server.url, token=TOKEN)
    info = api.repo_info

    def then_somebody_commits(*args, **kwargs):
        seen = info(*args, **kwargs)
        theirs.upload_file(path_or_fileobj=b"theirs", path_in_repo="NOTES.md", repo_id="me/tiny")
        return seen

    monkeypatch.setattr(api, "repo_info", then_somebody_commits)
    with pytest.raises(ConnectionError, match=r"broke off: .*412"):
        push(saved, "me/tiny", ModelCard(CARD + "mine"), exist_ok=True, api=api)
    assert server.files("me/tiny")["README.md"] == CARD.encode()


def test_what_cannot_be_done_is_said_before_anything_is_made(saved, server, api, monkeypatch):
    wrong = HfApi(endpoint=server.url, token="hf_" + "b" * 34)
    with pytest.raises(PermissionError, match=r"refused the token for me/tiny \(401\). Set HF_TOKEN"):
        push(saved, "me/tiny", ModelCard(CARD), api=wrong)
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9 broke off"):
        push(saved, "me/tiny", ModelCard(CARD), api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(PermissionError, match="There is no token"):
        push(saved, "me/tiny", ModelCard(CARD), api=HfApi(endpoint=server.url))
    assert not server.commits


def test_a_repository_that_holds_files_is_left_alone(saved, server, api):
    push(saved, "me/tiny", ModelCard(CARD), api=api)
    with pytest.raises(FileExistsError, match=r"me/tiny exists and holds \d+ files. .*exist_ok=True"):
        push(saved, "me/tiny", ModelCard(CARD + "More.\n"), api=api)
    assert server.files("me/tiny")["README.md"] == CARD.encode()


@pytest.mark.parametrize("lost", ["config.json", "processor_config.json", "model.safetensors", "modeling_dps.py"])
def test_a_folder_that_could_not_be_loaded_is_refused(saved, server, api, lost):
    (saved / lost).unlink()
    with pytest.raises(ValueError, match=f"lacks {lost}"):
        push(saved, "me/tiny", ModelCard(CARD), api=api)
    assert not server.commits


@pytest.mark.parametrize("name", ["README.md", "generation_config.json", "LICENSE"])
@pytest.mark.parametrize(
    "leak",
    [
        "hf_" + "c" * 34,
        "sk-" + "d" * 30,
        "the value of MY_API_KEY",
        "/home/somebody/runs/x",
        "C:\\Users\\me\\x",
        "{folder}/x",
    ],
)
def test_keys_and_local_paths_are_not_pushed(saved, server, api, monkeypatch, name, leak):
    monkeypatch.setenv("MY_API_KEY", "the value of MY_API_KEY")
    text = json.dumps({"note": leak.replace("{folder}", str(saved))})
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} holds (a key|the path)") as error:
        push(saved, "me/tiny", ModelCard(CARD + text * (name == "README.md")), api=api)
    assert "a key" not in str(error.value) or leak not in str(error.value)
    assert not server.commits


def test_where_parts_were_loaded_from_stays_here(saved, server, api):
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["_name_or_path"] = "/home/somebody/decoder"
    (saved / "config.json").write_text(json.dumps(config))
    push(saved, "me/tiny", ModelCard(CARD), api=api)
    pushed = json.loads(server.files("me/tiny")["config.json"])
    del config["text_config"]["_name_or_path"]
    for part in pushed.values():
        assert not isinstance(part, dict) or "_name_or_path" not in part
    assert pushed["text_config"] == config["text_config"]


def test_the_pictures_of_a_card_are_pushed_or_asked_for(saved, server, api):
    card = ModelCard(CARD + "![Samples](samples.png)\n![logo](https://example.com/logo.png)\n")
    with pytest.raises(ValueError, match=r"The card shows samples.png, which .* lacks. Give it in beside"):
        push(saved, "me/tiny", card, api=api)
    assert not server.commits
    Image.new("RGB", (8, 8)).save(saved.parent / "samples.png")
    push(saved, "me/tiny", card, beside=[saved.parent / "samples.png"], api=api)
    assert "samples.png" in server.files("me/tiny")


def test_a_model_of_ones_own_is_pushed_with_its_figures_parts_and_samples(saved, server, api, tmp_path):
    figures = {"value": 0.5, "n": 9, "ci95": [0.2, 0.8]}
    recipe = {"weights": "abc", "dataset": "squares"}
    report = {"parameters": 9000, "recipe": recipe, "command": f"evaluate.py --dataset {tmp_path}/squares"}
    (tmp_path / "mine.json").write_text(json.dumps({**report, "questions": {"exact": figures}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    card = model_card(
        Path(__file__).parents[2] / "model_cards" / "base.md",
        "me/tiny",
        tmp_path / "mine.json",
        folder=saved,
        parts={"decoder": {"name": "me/decoder", "licence": "mit"}},
        samples=[tmp_path / "mine.png"],
        description="It names squares.",
        training="An hour.",
        limits="It knows nothing else.",
        data=[{"data": "squares", "what": "nine of them", "licence": "CC0-1.0"}],
    )
    push(saved, "me/tiny", card, beside=[tmp_path / "mine.png"], api=api)
    pushed = ModelCard(server.files("me/tiny")["README.md"].decode())
    assert "mine.png" in server.files("me/tiny") and str(tmp_path) not in pushed.content
    assert (pushed.data.license, pushed.data.base_model) == ("mit", ["me/decoder"])
    assert [result.task_type for result in pushed.data.eval_results] == ["visual-question-answering"]
    for row in ("| decoder | me/decoder | mit |", "| `questions.exact` | 0.5 | 0.2 – 0.8 | 9 |", "](mine.png)"):
        assert row in pushed.text


def test_an_adapter_names_its_base_on_the_hub(adapter, server, api):
    folder, _ = adapter
    with pytest.raises(ValueError, match="must name its base_model"):
        push(folder, "me/adapter", ModelCard(CARD), api=api)
    push(folder, "me/adapter", ModelCard(ADAPTER_CARD), api=api)
    files = server.files("me/adapter")
    assert set(files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/tiny"
    assert not [name for name, content in files.items() if b"somebody" in content]


def test_preferences_are_pushed_as_parquet_with_their_pictures(preferences, server, api, tmp_path):
    push(preferences, "me/preferences", DatasetCard(CARD), api=api)
    files = server.files("me/preferences", "datasets")
    assert set(files) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    [picture] = parquet.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"])).to_pylist()[0]["images"]
    assert Image.open(io.BytesIO(picture["bytes"])).getpixel((0, 0)) == (255, 0, 0)
    assert picture["path"] == "red.png"

    Dataset.from_dict({"prompt": ["Say hf_" + "e" * 34]}).save_to_disk(tmp_path / "leaky")
    with pytest.raises(ValueError, match="parquet holds a key"):
        push(tmp_path / "leaky", "me/leaky", DatasetCard(CARD), api=api)


@pytest.mark.slow
def test_what_was_pushed_loads_where_the_package_is_absent(
    saved, adapter, preferences, make_model, tiny_model, server, api, tmp_path
):
    first = push(saved, "me/tiny", ModelCard(CARD), api=api)
    other = make_model()
    torch.manual_seed(1)
    torch.nn.init.normal_(other.model.get_input_embeddings().weight)
    other.save_pretrained(saved)
    push(saved, "me/tiny", ModelCard(CARD), exist_ok=True, api=api)
    push(adapter[0], "me/adapter", ModelCard(ADAPTER_CARD), api=api)
    push(preferences, "me/preferences", DatasetCard(CARD), api=api)

    report = reported(SCRIPT, server, tmp_path, first.oid, "again")
    ids = torch.tensor([[72, 105]])
    expected = {"pinned": tiny_model, "newest": other, "again": tiny_model, "adapted": adapter[1]}
    with torch.no_grad():
        sums = {name: model(input_ids=ids).logits.double().sum().item() for name, model in expected.items()}
    assert report == {"sums": pytest.approx(sums, abs=1e-4), "size": [16, 16], "pixel": [255, 0, 0], "rows": 3}
    assert len({round(value, 2) for value in sums.values()}) == 3, "pinned, newest and adapted differ"
    assert not [path for path in Path(tmp_path / "home").rglob("*") if path.suffix in (".bin", ".pt")]


@pytest.mark.slow
@pytest.mark.skipif(
    "TORCHVISION_PYTHON" not in os.environ, reason="needs the Python of an environment with torchvision"
)
def test_a_pipeline_draws_and_reads_what_was_pushed(server, api, tmp_path):
    """`pipeline("any-to-any")` wants torchvision, whose published build works beside the published torch only."""
    push(dps_hf.NANO, "me/nano", ModelCard.load(Path(dps_hf.NANO) / "README.md"), api=api)
    report = reported(PIPELINE, server, tmp_path, python=os.environ["TORCHVISION_PYTHON"])
    red, green, blue = report["pixel"]
    assert red > 150 and max(green, blue) < 90
    assert report["text"] == "a big red heart"


def reported(script: str, server, folder: Path, *arguments: str, python: str = sys.executable) -> dict:
    """What a script prints last, run alone against the server, in a home folder of its own."""
    path = folder / "script.py"
    path.write_text(script)
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [python, "-I", str(path), *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])
