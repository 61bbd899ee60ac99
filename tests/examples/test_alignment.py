"""The scripts that align: trl's own trainers on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
import torch
import trl
import yaml
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from PIL import Image as PIL
from safetensors.torch import load_file
from scripted_server import scripted_server
from transformers import AutoTokenizer
from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, SFTConfig
from trl.trainer.utils import add_fused_lm_head
from two_processes import launch

import dps_hf.judges.openai
import dps_hf.judges.server
import dps_hf.nano.exact_judge
from dps_hf.components import from_components
from dps_hf.data.guidance import read_schedules
from dps_hf.data.mixture import Mixture
from dps_hf.data.record import record
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.judges.verdict import Case, Verdict
from dps_hf.training.loading import forbid_words, load_for_training
from dps_hf.training.resuming import find_last_checkpoint


ROOT = Path(__file__).parents[2]
NORM = "base_model.model.model.language_model.norm.weight"  # in an adapter
CONFIGS = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig, "grpo": GRPOConfig}
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
LORA = {"use_peft": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
RATES = {"decoder": 1e-3, "connector": 1e-2, "new_tokens": 1e-2}
GRPO = {"num_generations": 4, "max_completion_length": 8}
CHAT = List({"role": Value("string"), "content": Value("string")})
RED, BLUE = (PIL.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


def said(text: str, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": text}]


@pytest.fixture(scope="session")
def data(tiny_processor, tmp_path_factory) -> dict[str, str]:
    """Folders of pairs of drawings, of mixed pairs with pictures and without, and of single drawings."""
    folder, rng = tmp_path_factory.mktemp("preferences"), torch.Generator().manual_seed(0)

    def drawing(low: int) -> str:
        return tiny_processor.drawing_text(torch.randint(low, low + 8, (4,), generator=rng))

    prompts = [said(f"star {i}", "user") for i in range(16)]
    chosen, rejected = [said(drawing(0)) for _ in prompts], [said(drawing(8)) for _ in prompts]
    pairs = Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected, "score_chosen": [1.0] * 16})
    chosen[::2], rejected[::2] = [said("red")] * 8, [said("a very long answer")] * 8
    pictures = [[RED], [], [BLUE], []] * 4
    features = Features({"prompt": CHAT, "chosen": CHAT, "rejected": CHAT, "images": List(Image())})
    mixed = Dataset.from_dict(
        {"prompt": prompts, "chosen": chosen, "rejected": rejected, "images": pictures}, features
    )
    labels = [i % 4 == 0 for i in range(16)]
    single = [said(drawing(0 if label else 8)) for label in labels]
    unpaired = Dataset.from_dict({"prompt": prompts, "completion": single, "label": labels})
    # Of four pairs a step, as one process sees them or two: pictures in the first two, the last two, none, one, all.
    shown = [RED, RED, 0, 0, 0, 0, BLUE, BLUE, 0, 0, 0, 0, 0, 0, RED, 0, RED, BLUE, RED, BLUE]
    columns = {name: [*mixed[name], *mixed[name][:4]] for name in ("prompt", "chosen", "rejected")}
    uneven = Dataset.from_dict({**columns, "images": [[picture] if picture else [] for picture in shown]}, features)
    folders = {}
    for name, dataset in (("pairs", pairs), ("mixed", mixed), ("unpaired", unpaired), ("uneven", uneven)):
        folders[name] = str(folder / name)
        dataset.save_to_disk(folders[name])
    return folders


@pytest.fixture
def train(example, saved_model, tmp_path):
    """Runs a script in this process, on the tiny model unless told otherwise."""

    def run(
        name: str, output: str = "run", model: str = saved_model, lora: dict = LORA, script=None, **training
    ) -> Path:
        module = example(f"{name}.py")
        if name == "grpo":
            script = {"judge": "dps_hf.nano.exact_judge.exact_judge", **(script or {})}
        if name == "sft":
            script = {
                "tasks": {"dps_hf.nano.tasks.scenes_t2i": 1, "dps_hf.nano.tasks.scenes_cot": 1},
                **(script or {}),
            }
        fields = {**TRAINING, **(GRPO if name == "grpo" else {}), **training}
        module.main(
            module.ScriptArguments(**(script or {})),
            CONFIGS[name](str(tmp_path / output), **fields),
            ModelConfig(model, **lora),
        )
        return tmp_path / output

    return run


def losses(output: Path, name: str = "loss") -> list[float]:
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row[name] for row in log if name in row]


def test_dpo_on_drawings_learns(train, data):
    curve = losses(train("dpo", script={"dataset": data["pairs"]}, max_steps=15))
    assert curve[0] == pytest.approx(0.6931, abs=1e-3)
    assert sum(curve[-3:]) / 3 < 0.4


@pytest.mark.parametrize("name, dataset", [("dpo", "pairs"), ("kto", "unpaired")])
def test_the_last_norm_is_trained_at_its_own_rate_and_merged(train, data, saved_model, example, name, dataset):
    script = {"dataset": data[dataset], "norm_learning_rate": 0.1}
    output = train(name, script=script, learning_rate=1e-6, lr_scheduler_type="constant")
    merge = example("merge_adapter.py")
    merge.main(merge.ScriptArguments(str(output), str(output / "merged")), ModelConfig())
    norm = "model.language_model.norm.weight"
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (saved_model, output / "merged"))
    surer = after[norm] / before[norm]
    assert 0.01 < (surer.mean() - 1).abs() < 0.3
    assert surer.std() < 1e-5, "or other tokens would become the likeliest"
    moved = {key: after[key] - before[key] for key in before if key != norm}
    assert max(change.abs().max() for change in moved.values()) < 1e-4


def test_what_else_an_adapter_trains_keeps_its_rate(train, data, saved_model):
    lora = {**LORA, "use_dora": True, "lora_modules_to_save": ["connector"]}
    script = {"dataset": data["mixed"], "norm_learning_rate": 0.1}
    output = train("dpo", lora=lora, script=script, learning_rate=1e-6, lr_scheduler_type="constant")
    trained, before = (
        load_file(Path(folder) / f"{name}model.safetensors")
        for folder, name in ((output, "adapter_"), (saved_model, ""))
    )
    assert (trained[NORM] - before["model.language_model.norm.weight"]).abs().mean() > 0.01
    connector = [name for name in trained if ".connector." in name]
    assert connector and any("magnitude" in name for name in trained)
    for name in connector:
        assert (trained[name] - before[name.removeprefix("base_model.model.")]).abs().max() < 1e-4


def test_dpo_refuses_labelled_answers(train, data):
    with pytest.raises(ValueError, match=r"dataset must hold .* Train with examples/kto.py"):
        train("dpo", script={"dataset": data["unpaired"]})


@pytest.mark.parametrize("kind", ["pairs", "mixed"])
def test_kto_makes_a_good_and_a_bad_answer_of_each_pair(train, data, kind, capsys):
    output = train("kto", script={"dataset": data[kind], "evaluation_share": 0.1}, eval_strategy="steps", eval_steps=2)
    printed = capsys.readouterr().out
    assert "dataset holds pairs: each becomes a good and a bad answer." in printed and "14 good, 14 bad" in printed
    assert len(losses(output)) == 2 and len(losses(output, "eval_loss")) == 1


def test_a_rate_for_the_norm_without_an_adapter_is_an_error(train, data):
    with pytest.raises(ValueError, match="norm_learning_rate"):
        train("dpo", lora={}, script={"dataset": data["pairs"], "norm_learning_rate": 0.1})


@pytest.fixture
def new_model(shrunk_parts, tmp_path) -> str:
    """A folder with a model of parts, whose connector and new tokens are random."""
    model, processor = from_components(shrunk_parts["text"], shrunk_parts["vision"], shrunk_parts["codes"])
    model.generation_config.update(eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id)
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    return str(tmp_path / "new")


@pytest.mark.parametrize("name", ["dpo", "kto", "grpo"])
def test_the_other_trainers_take_rates_and_refuse_what_would_stay_random(name, train, new_model, tmp_path, capsys):
    rows = [{"prompt": said(f"star {i}", "user"), "chosen": said("yes"), "rejected": said("no")} for i in range(8)]
    if name == "kto":
        rows = [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(rows)
        ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "words")
    script = {"dataset": str(tmp_path / "words")}
    if name == "grpo":
        script = {"tasks": {"dps_hf.nano.tasks.scenes_t2i": 1}, "num_prompts": 4}
    with pytest.raises(ValueError, match="connector and new_tokens of this model are still random"):
        train(name, model=new_model, script=script)
    rates = {"decoder": 1e-3, "connector": 0, "new_tokens": 1e-2}
    output = train(name, model=new_model, script={**script, "train": rates}, lr_scheduler_type="constant")
    assert len(losses(output)) == 2
    assert "new_tokens 672 at 0.01" in capsys.readouterr().out
    weights = load_file(output / "adapter_model.safetensors")
    assert any("trainable_tokens_delta" in key for key in weights) and not any("connector" in key for key in weights)


def test_dpo_without_an_adapter_learns_from_prompts_with_pictures_and_without(train, data):
    output = train(
        "dpo", lora={}, script={"dataset": data["mixed"]}, max_steps=15, learning_rate=0.001, loss_type="sigmoid_norm"
    )
    curve = losses(output)
    assert curve[0] == pytest.approx(0.6931, abs=1e-3)
    assert sum(curve[-3:]) / 3 < 0.67
    assert (output / "model.safetensors").exists()


def test_kto_learns_which_drawings_are_good(train, data):
    output = train("kto", script={"dataset": data["unpaired"]}, max_steps=15)
    margins = losses(output, "rewards/margins") or [
        good - bad for good, bad in zip(losses(output, "rewards/chosen"), losses(output, "rewards/rejected"))
    ]
    assert margins[-1] > margins[0] + 0.1


def test_kto_does_not_take_responses_in_the_order_of_their_prompts(train, data, monkeypatch):
    seen = []

    class Watched(trl.KTOTrainer):
        def __init__(self, *args, train_dataset, **kwargs):
            seen.append(train_dataset["prompt"][:])
            super().__init__(*args, train_dataset=train_dataset, **kwargs)

    monkeypatch.setattr(trl, "KTOTrainer", Watched)
    train("kto", script={"dataset": data["unpaired"]}, max_steps=1)
    stored = load_from_disk(data["unpaired"])["prompt"][:]
    assert seen[0] != stored and sorted(map(str, seen[0])) == sorted(map(str, stored))


@pytest.mark.parametrize("drawings", [True, False])
def test_kto_forbids_words_where_all_completions_are_drawings(train, data, monkeypatch, tmp_path, drawings):
    dataset, seen = load_from_disk(data["unpaired"]), []
    if not drawings:
        dataset = dataset.map(lambda row, i: {"completion": said("red")} if i == 3 else row, with_indices=True)
    dataset.save_to_disk(tmp_path / "unpaired")

    class Watched(trl.KTOTrainer):
        def __init__(self, *args, model, **kwargs):
            seen.append(model.get_output_embeddings().bias)
            super().__init__(*args, model=model, **kwargs)

    monkeypatch.setattr(trl, "KTOTrainer", Watched)
    output = train("kto", script={"dataset": str(tmp_path / "unpaired")}, max_steps=1)
    assert (seen[0] is not None) == drawings
    if drawings:
        tokens = AutoTokenizer.from_pretrained(output)
        of_drawings = ["<begin_of_image>", "<end_of_image>", "<img_0>", "<img_15>", tokens.eos_token]
        assert not seen[0][tokens.convert_tokens_to_ids(of_drawings)].any()
        assert (seen[0][tokens("red")["input_ids"]] < -1000).all()


def in_parts(messages: list[dict]) -> list[dict]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


@pytest.mark.parametrize(
    "name, dataset", [("dpo", "pairs"), ("kto", "unpaired"), pytest.param("dpo", "mixed", marks=pytest.mark.slow)]
)
def test_content_as_a_list_of_parts_trains_as_text_does(train, data, tmp_path, name, dataset):
    texts = load_from_disk(data[dataset])
    chats = [column for column in ("prompt", "chosen", "rejected", "completion") if column in texts.column_names]
    if dataset == "mixed":  # where a picture belongs, the parts say so
        rows = [
            {**row, **{column: in_parts(row[column]) for column in chats}}
            for row in texts.cast_column("images", List(Image(decode=False)))
        ]
        for row in rows:
            row["prompt"][0]["content"] = [{"type": "image", "text": None}] * len(row["images"]) + row["prompt"][0][
                "content"
            ]
        columns = {column: [row[column] for row in rows] for column in texts.column_names}
        parts = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
        features = Features({**dict.fromkeys(chats, parts), "images": List(Image(decode=False))})
        typed = Dataset.from_dict(columns, features)
    else:
        columns = {column: [in_parts(chat) for chat in texts[column]] for column in chats}
        others = {column: texts[column][:] for column in texts.column_names if column not in chats}
        typed = Dataset.from_dict(columns | others)
    typed.save_to_disk(tmp_path / "typed")
    curves = [
        losses(train(name, output=kind, script={"dataset": path}))
        for kind, path in (("texts", data[dataset]), ("parts", str(tmp_path / "typed")))
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


@pytest.mark.parametrize(
    ("completion", "draws"),
    [
        ("<begin_of_image><img_0>", True),
        (said("<begin_of_image><img_0>"), True),
        (in_parts(said("<begin_of_image><img_0>")), True),
        ("A star: <begin_of_image>", False),
        (in_parts(said("red")), False),
        ([{"role": "assistant", "content": []}], False),
        ([], False),
        ("", False),
    ],
)
def test_kto_knows_drawings_however_a_completion_is_given(example, tiny_processor, completion, draws):
    assert example("kto.py").is_drawing(completion, tiny_processor) == draws


def test_kto_takes_completions_as_plain_text(train, data, tmp_path):
    chats = load_from_disk(data["unpaired"])
    columns = {name: [chat[0]["content"] for chat in chats[name]] for name in ("prompt", "completion")}
    Dataset.from_dict({**columns, "label": chats["label"][:]}).save_to_disk(tmp_path / "plain")
    assert losses(train("kto", script={"dataset": str(tmp_path / "plain")}))


def without_pictures_as_none(path: str, folder: Path, decode: bool = True, **change) -> str:
    """A copy of pairs, for KTO too, in which rows without pictures have `None`. `change` sets the pictures of rows."""
    rows = load_from_disk(path).cast_column("images", List(Image(decode=False)))
    columns = {name: rows[name][:] for name in ("prompt", "chosen", "rejected")}
    columns |= {"completion": columns["chosen"], "label": [i % 4 == 0 for i in range(len(rows))]}
    images = [change.get(f"row_{i}", pictures or None) for i, pictures in enumerate(rows["images"])]
    features = Features({**dict.fromkeys(columns, CHAT), "label": Value("bool"), "images": List(Image(decode=decode))})
    Dataset.from_dict({**columns, "images": images}, features).save_to_disk(folder / "none")
    return str(folder / "none")


@pytest.mark.parametrize("name, decode", [("dpo", True), ("kto", False)])
def test_none_says_that_a_prompt_has_no_pictures(train, data, tmp_path, name, decode):
    path = without_pictures_as_none(data["mixed"], tmp_path, decode)
    columns = {"dpo": ["prompt", "chosen", "rejected"], "kto": ["prompt", "completion", "label"]}[name]
    load_from_disk(path).select_columns([*columns, "images"]).save_to_disk(tmp_path / "selected")
    assert losses(train(name, script={"dataset": str(tmp_path / "selected")}, max_steps=1))


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_row_whose_picture_is_missing_is_left_out_and_listed(train, data, tmp_path, name):
    red = load_from_disk(data["mixed"]).cast_column("images", List(Image(decode=False)))[0]["images"][0]
    path = without_pictures_as_none(data["mixed"], tmp_path, row_5=[red, None])
    columns = {"dpo": ["prompt", "chosen", "rejected"], "kto": ["prompt", "completion", "label"]}[name]
    load_from_disk(path).select_columns([*columns, "images"]).save_to_disk(tmp_path / "selected")
    assert losses(train(name, script={"dataset": str(tmp_path / "selected")}, max_steps=1))
    listed = json.loads((tmp_path / "run" / "skipped.jsonl").read_text())
    assert listed["row"] == 5 and "'images'[1] holds no picture" in listed["reason"]


def test_grpo_leaves_out_prompts_that_are_too_long(train, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("a red square\n" + "a red square and " * 80 + "\n")
    fields = {"max_completion_length": 6, "max_steps": 1}
    train("grpo", script={"prompts": tmp_path / "mine.txt", "judge": f"{__name__}.judge_all"}, **fields)
    assert "1 prompts are left out. With max_completion_length, the last is too long: 1" in capsys.readouterr().out
    (tmp_path / "long.txt").write_text("a red square and " * 80)
    with pytest.raises(ValueError, match=r"No prompt can be used\. With max_completion_length, the last is too long"):
        train("grpo", "long", script={"prompts": tmp_path / "long.txt", "judge": f"{__name__}.judge_all"}, **fields)


def judge_all(cases: list[Case]) -> list[Verdict]:
    return [Verdict({"mine": float(i % 2)}, "", "mine", case.origin) for i, case in enumerate(cases)]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_preferences_may_be_streamed_with_an_evaluation_set_of_their_own(train, data, tmp_path, name):
    path = data["mixed" if name == "dpo" else "unpaired"]
    script = {"dataset": {"path": path, "streaming": True}}
    with pytest.raises(ValueError, match="streamed needs max_steps"):
        train(name, script=script, max_steps=-1)
    with pytest.raises(ValueError, match="evaluation_share needs a data set that is not streamed"):
        train(name, script=script, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="precompute_ref_log_probs needs a data set that is not streamed"):
        train(name, script=script, precompute_ref_log_probs=True)
    output = train(name, script={**script, "evaluation_dataset": path}, eval_strategy="steps", eval_steps=1)
    assert len(losses(output)) == 2 and len(losses(output, "eval_loss")) == 2


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_pictures_as_answers_are_learned_as_drawings(train, tmp_path, name):
    red, blue = ({"bytes": as_png(picture), "path": None} for picture in (RED, BLUE))
    if name == "dpo":  # Pick-a-Pic's columns
        columns = {"caption": ["red"] * 8, "jpg_0": [red["bytes"]] * 8, "jpg_1": [blue["bytes"]] * 8}
        Dataset.from_dict({**columns, "label_0": [1.0, 0.0] * 4, "label_1": [0.0, 1.0] * 4}).to_parquet(
            tmp_path / "mine.parquet"
        )
        setting = {"path": str(tmp_path / "mine.parquet")}
    else:
        columns = {"wish": ["red"] * 8, "drawn": [red, blue] * 4, "liked": [1, 0] * 4}
        features = Features({"wish": Value("string"), "drawn": Image(), "liked": Value("int64")})
        Dataset.from_dict(columns, features).to_parquet(tmp_path / "mine.parquet")
        named = {"prompt": "wish", "completion": "drawn", "label": "liked"}
        setting = {"path": str(tmp_path / "mine.parquet"), "columns": named}
    output = train(name, script={"dataset": [setting]}, max_steps=2)
    assert losses(output) and "fingerprint of the dataset" in json.loads((output / "settings.json").read_text())


def as_png(picture) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_kto_balances_labels_or_takes_weights_but_not_both(train, data):
    with pytest.raises(ValueError, match=r"balance sets desirable_weight .* 2.0 and 1.0. Set balance to false"):
        train("kto", script={"dataset": data["unpaired"]}, max_steps=1, desirable_weight=2.0)


def test_grpo_draws_what_its_judge_likes(train, example, monkeypatch):
    def likes_bright(cases: list[Case]) -> list[Verdict]:
        def brightness(picture):  # stretched: the random image tokenizer draws grey in grey
            mean = sum(picture.convert("L").get_flattened_data()) / (255 * picture.width * picture.height)
            return min(1.0, max(0.0, 0.5 + 50 * (mean - 0.5)))

        return [Verdict({"bright": brightness(case.response)}, "", "j", case.origin) for case in cases]

    monkeypatch.setattr(dps_hf.nano.exact_judge, "exact_judge", likes_bright)
    script = {"tasks": {"dps_hf.nano.tasks.scenes_t2i": 1}, "num_prompts": 8, "aspect": "bright"}
    output = train("grpo", script=script, max_steps=12, per_device_train_batch_size=16, num_generations=8)
    rewards = losses(output, "reward")
    assert sum(rewards[-3:]) > sum(rewards[:3])


def test_to_grpo_a_drawing_is_as_likely_as_to_generation_which_draws_no_words(make_model):
    model = make_model()
    config, ids = model.config, torch.tensor([[5, 6, 7, 8]])
    codes = torch.arange(config.codebook_size) + config.image_code_start_id
    image_tokens = torch.cat([codes, torch.tensor([config.boi_token_id, config.eoi_token_id])])
    ids = torch.cat([ids, image_tokens[None]], 1)
    freely = model(input_ids=ids).logits[:, 3:-1, image_tokens].log_softmax(-1)

    forbid_words(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))  # as the trainer does
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 4, -100)
    scored = model(input_ids=ids, labels=labels, fused_lm_head=True)
    expected = freely.gather(2, torch.arange(len(image_tokens))[None, :, None])[..., 0]
    torch.testing.assert_close(scored.log_probs[:, 3:], expected)
    torch.testing.assert_close(scored.entropy[:, 3:], -(freely.exp() * freely).sum(-1))
    assert not [name for name in model.state_dict() if name.endswith("lm_head.bias")]


@pytest.mark.parametrize("task, forbidden", [("scenes_t2i", True), ("facts", False)])
def test_grpo_forbids_words_in_drawings_alone(train, monkeypatch, task, forbidden):
    biases = []

    class Watched(trl.GRPOTrainer):
        def __init__(self, *args, model, **kwargs):
            biases.append(model.get_output_embeddings().bias)
            super().__init__(*args, model=model, **kwargs)

    monkeypatch.setattr(trl, "GRPOTrainer", Watched)
    train("grpo", script={"tasks": {f"dps_hf.nano.tasks.{task}": 1}, "num_prompts": 4}, max_steps=1)
    assert (biases[0] is not None) == forbidden


def test_grpo_knows_its_judges(example):
    with pytest.raises(ValueError, match=r"judge must be the dotted path of a function or class, .*; got 'exat'"):
        example("grpo.py").ScriptArguments(judge="exat")
    with pytest.raises(
        ValueError, match="judge_options must have model and rubric for the judge openai; rubric missing"
    ):
        example("grpo.py").ScriptArguments(judge="openai", judge_options={"model": "m"})


def test_grpo_stops_where_its_judge_answers_no_more(train, monkeypatch):
    class Server:
        counts: Counter = Counter()

        def __call__(self, cases):
            self.counts["no reply"] += len(cases)
            return [None] * len(cases)

    monkeypatch.setattr(dps_hf.nano.exact_judge, "exact_judge", Server())
    with pytest.raises(RuntimeError, match="The judge replies no more"):
        train("grpo", script={"tasks": {"dps_hf.nano.tasks.scenes_t2i": 1}, "num_prompts": 4}, max_steps=1)


def test_grpo_quotes_what_the_server_of_its_judge_said_at_last(example):
    def judge(cases):
        judge.counts["no reply"] += len(cases)
        return [None] * len(cases)

    judge.counts, judge.fault = Counter(), "its reply is empty, finish_reason length"
    reward = example("grpo.py").JudgeReward(judge, None, None, False)
    with pytest.raises(RuntimeError, match="replies no more: its reply is empty, finish_reason length"):
        reward([], [said("yes")], [], [[]], ["one"])


@pytest.mark.parametrize(("status", "answered"), [(402, 0), (403, 8), (503, 8)])
def test_grpo_stops_when_its_judge_is_refused_and_the_same_command_goes_on(train, monkeypatch, status, answered):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(dps_hf.judges.server, "BACKOFF_SECONDS", 0.01)
    verdict = json.dumps({"rationale": "", "correct": 5, "complete": 5, "clear": 5})
    refusal = status, {"error": {"message": "Insufficient Balance"}}
    whole = 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": verdict}}]}
    with scripted_server() as server:
        options = {
            "model": "judge-1",
            "rubric": "answer",
            "base_url": server.base_url,
            "progress": False,
            "retries": 1,
        }
        script = {
            "tasks": {"dps_hf.nano.tasks.scenes_i2t": 1},
            "num_prompts": 8,
            "judge": "openai",
            "judge_options": options,
        }
        settings = {"script": script, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
        server.reply = lambda path, request: whole if len(server.requests) <= answered else refusal
        with pytest.raises(RuntimeError, match=f"HTTP {status}: Insufficient Balance"):
            train("grpo", **settings)
        server.reply = lambda path, request: whole
        output = train("grpo", **settings)
    assert losses(output, "reward") == pytest.approx([4 / 9] * 3)


def test_grpo_rewards_with_anybodys_class_that_needs_the_model(train, tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("""
from dps_hf.judges.verdict import Verdict

made = []

class LikesLong:
    def __init__(self, model, processor, most):
        self.processor, self.most = processor, most
        made.append(model)

    def __call__(self, cases):
        lengths = [len(self.processor.tokenizer(case.response)["input_ids"]) for case in cases]
        return [Verdict({"length": min(1, n / self.most)}, "", "long", c.origin) for n, c in zip(lengths, cases)]
""")
    monkeypatch.syspath_prepend(tmp_path)
    fields = {"judge": "my_rewards.LikesLong", "tasks": {"dps_hf.nano.tasks.scenes_i2t": 1}, "num_prompts": 4}
    output = train("grpo", script={**fields, "judge_options": {"most": 100}}, max_steps=2)
    assert all(0 < reward < 1 for reward in losses(output, "reward"))
    (model,) = sys.modules.pop("my_rewards").made
    assert not model.training
    with pytest.raises(
        ValueError, match=r"judge_options must have most for the judge my_rewards\.LikesLong; most missing"
    ):
        train("grpo", script=fields)


def test_grpo_needs_a_reward_to_begin_with(train, monkeypatch, tmp_path):
    script = {"tasks": {"dps_hf.nano.tasks.scenes_t2i": 1}, "num_prompts": 4}
    with pytest.raises(ValueError, match=r"the judge scores .*shape.*, aspect is 'shpe'"):
        train("grpo", script={**script, "aspect": "shpe"}, max_steps=1)
    (tmp_path / "mine.txt").write_text("a cat on a sofa\na dog\n")
    with pytest.raises(ValueError, match="No response of the first batch has a reward: the judge scores none of them"):
        train("grpo", script={"prompts": tmp_path / "mine.txt"}, max_steps=1)


def test_grpo_draws_the_prompts_of_a_file(train, monkeypatch, tmp_path):
    asked = set()

    def judge(cases):
        asked.update(case.prompt for case in cases)
        return [Verdict({"a": 0.5}, "", "j", case.origin) for case in cases]

    monkeypatch.setattr(dps_hf.nano.exact_judge, "exact_judge", judge)
    (tmp_path / "mine.txt").write_text("a star\na heart\n")
    train("grpo", script={"prompts": tmp_path / "mine.txt"}, max_steps=2)
    assert asked == {"a star", "a heart"}


def test_grpo_asks_the_questions_of_a_folder_of_records_and_its_judge_knows_their_answers(
    train, monkeypatch, tmp_path
):
    asked = set()

    def judge(cases):
        asked.update((case.prompt, case.images[0].getpixel((0, 0)), case.answers) for case in cases)
        return [Verdict({"a": 0.5}, "", "j", case.origin) for case in cases]

    monkeypatch.setattr(dps_hf.nano.exact_judge, "exact_judge", judge)
    pictures = {colour: PIL.new("RGB", (64, 64), colour) for colour in ("red", "blue")}
    records = [record("mine", [picture, "Which?"], [colour]) for colour, picture in pictures.items()]
    columns = {name: [one[name] for one in records] for name in ("messages", "images")}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "mine")
    train("grpo", script={"prompts": tmp_path / "mine"}, max_steps=2)
    assert asked == {("Which?", (255, 0, 0), ("red",)), ("Which?", (0, 0, 255), ("blue",))}


def test_grpo_answers_about_pictures(train):
    output = train("grpo", script={"tasks": {"dps_hf.nano.tasks.scenes_i2t": 1}, "num_prompts": 4})
    assert all(0 <= reward <= 1 for reward in losses(output, "reward"))


def test_a_judge_without_a_verdict_gives_no_reward(example, tiny_model, tiny_processor):
    grpo = example("grpo.py")
    seen = []

    def judge(cases):
        seen.extend(cases)
        return [Verdict({"a": 0.5, "b": 1.0}, "", "j", "model"), None]

    asked = {"answers": [["x"], []], "text": ["one", "two"], "images": [[RED], []]}
    reward = grpo.JudgeReward(judge, tiny_model, tiny_processor, draw=False)
    assert reward([], [said("yes"), said("no")], [], **asked) == [0.75, None]
    assert seen == [Case("one", "yes", (RED,), ("x",)), Case("two", "no")]
    assert grpo.JudgeReward(judge, None, None, False, "b")([], [said("yes"), said("no")], [], **asked) == [1.0, None]


def test_a_judge_reads_answers_however_trl_gives_them(example, tiny_model, tiny_processor):
    seen = []

    def judge(cases):
        seen.extend(case.response for case in cases)
        return [Verdict({"a": 1.0}, "", "j", "model")] * len(cases)

    reward = example("grpo.py").JudgeReward(judge, tiny_model, tiny_processor, draw=False)
    answers = ["yes", said("yes"), in_parts(said("yes")), [], None]
    asked = {"answers": [[]] * 5, "text": [""] * 5, "images": [[RED], None, [], None, None]}
    assert reward([], answers, [], **asked) == [1.0] * 5
    assert seen == ["yes", "yes", "yes", "", ""]


def test_sft_anneals_its_guidance(train):
    script = {
        "guidance": {"scenes_cot": {"start": {"steps": 1}, "end": {"none": 1}}},
        "tasks": {"dps_hf.nano.tasks.scenes_cot": 1},
    }
    mixture = Mixture(script["tasks"], 0, 40, guidance=read_schedules(script["guidance"]))
    seen = ["<think>" in row["messages"][-1]["content"][0]["text"] for row in make_lazy_dataset(mixture)]
    assert sum(seen[:10]) > 6 > 4 > sum(seen[-10:])
    curve = losses(train("sft", script=script, max_steps=12, learning_rate=0.02))
    assert curve[-1] < curve[0]


def test_sft_takes_a_dataset_of_records(train, tmp_path):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Capital?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Paris."}]}]  # fmt: skip
    Dataset.from_dict({"messages": [messages] * 8, "images": [[]] * 8}).save_to_disk(tmp_path / "facts")
    curve = losses(
        train("sft", script={"dataset": str(tmp_path / "facts"), "tasks": {}}, max_steps=10, learning_rate=0.02)
    )
    assert curve[-1] < curve[0] / 2


def test_sft_takes_a_dataset_from_anybodys_function(train, tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "from PIL import Image\n"
        "from dps_hf.data.record import record\n"
        "def my_dataset():\n"
        "    return [record('t', [Image.new('RGB', (16, 16), 'red'), 'What?'], ['red'])] * 4\n"
    )
    monkeypatch.chdir(tmp_path)
    script = {"dataset": "my_data.my_dataset", "tasks": {}}
    curve = losses(train("sft", script=script, max_steps=10, learning_rate=0.02))
    assert curve[-1] < curve[0] / 2


@pytest.mark.parametrize("name, dataset", [("dpo", "pairs"), ("kto", "unpaired")])
def test_preferences_may_come_from_anybodys_function(train, data, tmp_path, monkeypatch, name, dataset):
    (tmp_path / f"my_{dataset}.py").write_text(
        f"from datasets import load_from_disk\ndef mine():\n    return load_from_disk({data[dataset]!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    assert losses(train(name, script={"dataset": f"my_{dataset}.mine"}, max_steps=1))


@pytest.mark.parametrize("decode", [True, False])
def test_sft_takes_records_with_pictures_however_they_are_kept(train, tmp_path, decode):
    RED.save(tmp_path / "red.png")
    kept = {"bytes": (tmp_path / "red.png").read_bytes(), "path": None}
    asked, plain = (record("t", prompt, [answer]) for prompt, answer in (([RED, "What?"], "red"), (["Hi"], "Ho")))
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {"messages": List({"role": Value("string"), "content": List(part)}), "images": List(Image(decode=decode))}
    )
    rows = {"messages": [asked["messages"], plain["messages"]] * 4, "images": [[kept], None] * 4}
    Dataset.from_dict(rows, features).save_to_disk(tmp_path / "kept")
    curve = losses(
        train("sft", script={"dataset": str(tmp_path / "kept"), "tasks": {}}, max_steps=10, learning_rate=0.02)
    )
    assert curve[-1] < curve[0] / 2


PROBE = """
import sys, torch
from safetensors.torch import save_file
from dps_hf.inference import load
model, processor = load(sys.argv[1])
ids = torch.arange(40)[None] % 256
with torch.no_grad():
    save_file({"logits": model(input_ids=ids).logits}, sys.argv[2])
"""


def logits(folder: Path | str, to: Path) -> torch.Tensor:
    """Of a fresh process, which loads the folder by the Auto classes."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder), str(to)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(to)["logits"]


def test_an_adapter_comes_back_in_a_new_process_and_merges(train, example, data, saved_model, tmp_path, monkeypatch):
    import trl

    trained = {}
    train_of_trl = trl.DPOTrainer.train

    def remember(self, *args, **kwargs):
        result = train_of_trl(self, *args, **kwargs)
        with torch.no_grad():
            trained["logits"] = self.model.eval()(input_ids=torch.arange(40)[None] % 256).logits
        return result

    monkeypatch.setattr(trl.DPOTrainer, "train", remember)
    adapter = train("dpo", script={"dataset": data["pairs"]}, max_steps=5)
    base = logits(saved_model, tmp_path / "base.safetensors")
    again = logits(adapter, tmp_path / "again.safetensors")
    torch.testing.assert_close(again, trained["logits"], atol=1e-5, rtol=1e-5)
    assert (again - base).abs().max() > 0.1
    merge = example("merge_adapter.py")
    merge.main(merge.ScriptArguments(str(adapter), str(tmp_path / "merged")), ModelConfig())
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = logits(tmp_path / "merged", tmp_path / "merged.safetensors")
    torch.testing.assert_close(merged, again, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="session")
def wide_model(make_model, make_text_config, tiny_processor, tmp_path_factory) -> str:
    """A model that bitsandbytes can hold in 4 bits."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(text_config=make_text_config(hidden_size=128, intermediate_size=128)).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_qlora_learns_and_comes_back_and_merges(train, example, data, wide_model, tmp_path, bits):
    lora = {**LORA, bits: True}
    adapter = train("dpo", model=wide_model, lora=lora, script={"dataset": data["pairs"]}, max_steps=15)
    curve = losses(adapter)
    assert curve[0] == pytest.approx(0.6931, abs=0.02) and sum(curve[-3:]) / 3 < 0.5
    merge = example("merge_adapter.py")
    merge.main(merge.ScriptArguments(str(adapter), str(tmp_path / "merged")), ModelConfig(**{bits: True}))
    merged, _ = load_for_training(ModelConfig(str(tmp_path / "merged")))
    assert not hasattr(merged.config, "quantization_config")
    plain, _ = load_for_training(ModelConfig(wide_model, **{bits: True}))
    plain = plain.dequantize(torch.float32)
    ids = torch.arange(40)[None]
    weights = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, module in plain.named_modules():  # the adapter by hand, as its paper defines it
            key = f"base_model.model.{name}.lora_%s.weight"
            if key % "A" in weights:
                module.weight += 2 * weights[key % "B"].float() @ weights[key % "A"].float()
        torch.testing.assert_close(
            merged.eval()(input_ids=ids).logits, plain.eval()(input_ids=ids).logits, atol=1e-3, rtol=1e-3
        )


def test_four_bits_on_a_cpu_refuse_what_would_stop_learning(train, data, wide_model):
    with pytest.raises(ValueError, match="eval_strategy"):
        train(
            "dpo", model=wide_model, lora={**LORA, "load_in_4bit": True}, script={"dataset": data["pairs"]},
            eval_strategy="steps", eval_steps=1,
        )  # fmt: skip


# Called again


def fields_of(name: str, data: dict) -> dict:
    """Of a script on short data."""
    script = {"tasks": {"dps_hf.nano.tasks.scenes_t2i": 1}, "num_prompts": 4} if name == "grpo" else {}
    return script if name in ("sft", "grpo") else {"dataset": data["pairs" if name == "dpo" else "unpaired"]}


ONCE = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 8}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}) for name in CONFIGS),
        ("dpo", {**ONCE, "save_strategy": "epoch", "save_total_limit": 1}),
        ("kto", {**ONCE, "num_train_epochs": 0.5, "save_strategy": "steps", "save_steps": 1}),
        ("dpo", {"max_steps": 1, "save_strategy": "no"}),
        ("sft", {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "lora": {}}),
    ],
)
def test_a_finished_training_that_is_called_again_says_so_and_changes_nothing(
    train, data, snapshot, capsys, name, fields
):
    fields = {"script": fields_of(name, data), **fields}
    output = train(name, **fields)
    before = snapshot(output)
    for resume in (None, "true"):
        capsys.readouterr()
        train(name, **fields, resume_from_checkpoint=resume)
        assert f"The training in {output} is finished; nothing is left to do." in capsys.readouterr().out
        assert snapshot(output) == before
    with pytest.raises(ValueError, match="other learning_rate"):
        train(name, **{**fields, "learning_rate": 0.5})
    assert snapshot(output) == before


@pytest.mark.parametrize("lora", [LORA, {}])
@pytest.mark.parametrize(
    ("short", "long", "said"),
    [
        ({"max_steps": 3}, {"max_steps": 5}, "max_steps was 3 and is 5"),
        ({**ONCE, "num_train_epochs": 1}, {**ONCE, "num_train_epochs": 2}, "num_train_epochs was 1 and is 2"),
    ],
)
def test_a_finished_training_is_made_longer_as_if_it_had_been_so_from_the_start(
    train, data, capsys, lora, short, long, said
):
    # Of a schedule that does not depend on the length.
    fields = {"script": {"dataset": data["pairs"]}, "lora": lora, "lr_scheduler_type": "constant"}
    fields |= {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.001}
    whole = train("dpo", "whole", **fields, **long)
    output = train("dpo", **fields, **short)
    capsys.readouterr()
    train("dpo", **fields, **long)
    assert f"{said}: from here on, the learning rate follows the schedule" in " ".join(capsys.readouterr().out.split())
    assert losses(output) == losses(whole)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    one, other = load_file(output / name), load_file(whole / name)
    assert all(torch.equal(one[key], other[key]) for key in other)
    capsys.readouterr()
    train("dpo", **fields, **long)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"must not be less than what .* has behind it, \d steps or .* epochs; got"):
        train("dpo", **fields, **short)


def test_a_training_without_a_checkpoint_is_not_made_longer(train, data, snapshot):
    fields = {"script": {"dataset": data["pairs"]}, "max_steps": 1}
    before = snapshot(train("dpo", **fields))
    with pytest.raises(ValueError, match="ended after 1 steps without"):
        train("dpo", **{**fields, "max_steps": 2})
    assert snapshot(train("dpo", **fields)) == before


@pytest.mark.parametrize("lora", [LORA, {}])
def test_a_training_that_was_killed_after_its_last_checkpoint_takes_no_further_step(train, data, lora):
    fields = {"script": {"dataset": data["pairs"]}, "lora": lora, "max_steps": 3}
    fields |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    output = train("dpo", **fields)
    weights = output / ("adapter_model.safetensors" if lora else "model.safetensors")
    curve, before = losses(output), load_file(weights)
    for path in (weights, output / "trainer_state.json", output / "curves.png"):
        path.unlink()
    train("dpo", **fields)
    after = load_file(weights)
    assert losses(output) == curve and (output / "curves.png").exists()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_named_checkpoint_is_gone_on_from(train, data, snapshot, capsys):
    fields = {"script": {"dataset": data["pairs"]}, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = train("dpo", "whole", **fields)
    named = str(whole / "checkpoint-2")
    output = train("dpo", "other", **fields, resume_from_checkpoint=named)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert losses(output) == losses(whole)
    before = snapshot(output)
    train("dpo", "other", **fields, resume_from_checkpoint=named)
    assert snapshot(output) == before, "the same command, which had finished"
    written = (whole / "checkpoint-3" / "trainer_state.json").stat().st_mtime_ns
    train("dpo", "whole", **fields, resume_from_checkpoint=named)
    assert (whole / "checkpoint-3" / "trainer_state.json").stat().st_mtime_ns > written
    assert losses(whole) == losses(output)
    with pytest.raises(ValueError, match=r"resume_from_checkpoint must be a folder of its own: .* other beta"):
        train("dpo", "third", **fields, resume_from_checkpoint=named, beta=0.2)
    with pytest.raises(
        ValueError, match=r"max_steps must not be less than what .*checkpoint-2 has behind it, 2 steps"
    ):
        train("dpo", "third", **{**fields, "max_steps": 1}, resume_from_checkpoint=named)


# Recipes


@pytest.mark.parametrize("name", CONFIGS)
def test_recipes_are_understood(name, example):
    from trl import TrlParser

    script = example(f"{name}.py")
    recipe = ROOT / "examples/recipes/nano" / f"{name}.yaml"
    parser = TrlParser((script.ScriptArguments, CONFIGS[name], ModelConfig))
    _, training, arguments = parser.parse_args_and_config(["--config", str(recipe), "--use_cpu", "--bf16", "false"])
    assert training.output_dir == f"runs/nano_{name}" and arguments.use_peft


# Killed, and several processes


def recipe(tmp_path: Path, output: str, **fields) -> Path:
    path = tmp_path / f"{output}.yaml"
    path.write_text(yaml.safe_dump({**TRAINING, **LORA, "output_dir": str(tmp_path / output), **fields}))
    return path


def run(command: list[str], **environment) -> None:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr[-5000:]


FIELDS = {
    "sft": {"tasks": {"dps_hf.nano.tasks.scenes_t2i": 1, "dps_hf.nano.tasks.scenes_cot": 1}},
    "dpo": {},
    "kto": {},
    "grpo": {
        "judge": "dps_hf.nano.exact_judge.exact_judge",
        "tasks": {"dps_hf.nano.tasks.scenes_t2i": 1},
        "num_prompts": 8,
        **GRPO,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name, rates", [*((name, {}) for name in CONFIGS), ("sft", RATES), ("dpo", RATES)])
def test_a_killed_trainer_resumes_to_the_same_losses(name, rates, data, saved_model, tmp_path):
    fields = {**FIELDS[name], "model_name_or_path": saved_model, "max_steps": 8, "save_strategy": "steps"}
    fields["train"] = rates
    fields |= {"save_steps": 2, "lora_dropout": 0.1}
    if name in ("dpo", "kto"):
        fields["dataset"] = data["pairs" if name == "dpo" else "unpaired"]
    script = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--config"]
    run([*script, str(recipe(tmp_path, "whole", **fields))])
    killed = recipe(tmp_path, "killed", **fields)
    process = subprocess.Popen([*script, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 300
    while find_last_checkpoint(tmp_path / "killed") is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert find_last_checkpoint(tmp_path / "killed"), "there is nothing to go on from"
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists(), "it had finished before it was killed"
    run([*script, str(killed)])
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does(name, kind, data, saved_model, tmp_path):
    fields = {**FIELDS[name], "model_name_or_path": saved_model, "max_steps": 5, "per_device_train_batch_size": 2}
    if name == "dpo":
        # What one process accumulates, two see at once: the order must be the same.
        fields |= {"dataset": data["pairs"], "train_sampling_strategy": "sequential", "norm_learning_rate": 0.05}
    script = str(ROOT / "examples" / f"{name}.py")
    run([sys.executable, script, "--config", str(recipe(tmp_path, "one", **fields, gradient_accumulation_steps=2))])
    run(launch(kind, script, "--config", str(recipe(tmp_path, "two", **fields))))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert set(one) == set(other)
    assert max((one[name] - other[name]).abs().max() for name in one) < 1e-2
    if name == "dpo":
        surer = other[NORM] / load_file(Path(saved_model) / "model.safetensors")["model.language_model.norm.weight"]
        assert (surer.mean() - 1).abs() > 1e-4 and surer.std() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("vision_tower", [False, True])
@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_everything_as_one_does_wherever_the_pictures_are(
    name, kind, vision_tower, data, saved_model, tmp_path
):
    fields = {"model_name_or_path": saved_model, "use_peft": False, "max_steps": 5}
    fields |= {"train": {"vision_tower": 0.003}} if vision_tower else {}
    fields |= {"per_device_train_batch_size": 2, "learning_rate": 0.003, "weight_decay": 0.1}
    if name == "sft":
        fields["tasks"] = {
            "dps_hf.nano.tasks.scenes_i2t": 2,
            "dps_hf.nano.tasks.scenes_t2i": 1,
            "dps_hf.nano.tasks.facts": 1,
        }
    else:
        fields |= {"dataset": data["uneven"], "train_sampling_strategy": "sequential"}
    script = str(ROOT / "examples" / f"{name}.py")
    run([sys.executable, script, "--config", str(recipe(tmp_path, "one", **fields, gradient_accumulation_steps=2))])
    run(launch(kind, script, "--config", str(recipe(tmp_path, "two", **fields))))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["architectures"] == [
        "DPSForConditionalGeneration"
    ]
    one, other = (logits(tmp_path / name, tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)
