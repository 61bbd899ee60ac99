"""The collator, resuming, and the curves."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from two_processes import run_on_two

from dps_hf.data.guidance import guide
from dps_hf.data.pictures import Pictures
from dps_hf.data.record import record
from dps_hf.inference import encode
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.nano.steps import run_script
from dps_hf.training import curves as curves_module
from dps_hf.training.collator import RecordCollator, encode_drawings
from dps_hf.training.curves import Curves, plot_curves
from dps_hf.training.packing import PackingCollator
from dps_hf.training.processes import SkipUnusedParts, fastest_precision
from dps_hf.training.resuming import is_finished, last_checkpoint, resumed


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@pytest.fixture
def collate(tiny_model, tiny_processor):
    return RecordCollator(tiny_model, tiny_processor)


def test_curves_are_drawn_once_after_an_evaluation_of_several_sets(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(curves_module, "plot_curves", lambda log, path: drawn.append(path))
    arguments, state, control = TrainingArguments(str(tmp_path), report_to="none"), TrainerState(), TrainerControl()
    curves = Curves()
    for _ in range(3):
        curves.on_evaluate(arguments, state, control)
    for _ in range(3):
        curves.on_step_begin(arguments, state, control)
    assert drawn == [tmp_path / "curves.png"]
    curves.on_train_end(arguments, state, control)
    assert len(drawn) == 2


def test_a_script_runs_as_if_by_itself_and_says_where_it_failed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "assert __name__ == '__main__'\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {(torch.ones(999, 999) @ torch.ones(999, 999)).sum():.0f}')\n"
        "sys.exit(len(sys.argv) - 2)\n"
    )
    torch.ones(999, 999) @ torch.ones(999, 999)  # threads of this process are none of its
    run_script(script, tmp_path / "out")
    process, total = (tmp_path / "out").read_text().split()
    assert int(process) != os.getpid() and int(total) == pytest.approx(999**3, rel=1e-3)
    with pytest.raises(RuntimeError, match=r"script\.py .* more failed with 1"):
        run_script(script, tmp_path / "out", "more")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_script_ends_when_whoever_ran_it_is_killed(tmp_path):
    script, parent = tmp_path / "script.py", tmp_path / "parent.py"
    script.write_text(
        f"import os, time\nopen({str(tmp_path / 'id')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    parent.write_text(
        f"from dps_hf.nano.steps import run_script\nif __name__ == '__main__':\n    run_script({str(script)!r})\n"
    )
    process = subprocess.Popen([sys.executable, parent])
    wait_until(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{(tmp_path / 'id').read_text()}").exists())


def wait_until(happened, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "no"),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
    ],
)
def test_a_cpu_trains_in_bfloat16_only_where_it_can(tiny_model, monkeypatch, tmp_path, capsys, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    arguments = TrainingArguments(str(tmp_path), bf16=True, use_cpu=True, report_to="none")
    fastest_precision(arguments)
    assert Trainer(tiny_model, arguments).accelerator.mixed_precision == expected
    assert arguments.bf16 == (expected == "bf16") == (not capsys.readouterr().out)


def labelled(batch: dict, row: int, processor) -> str:
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def test_loss_is_on_the_answer_alone(collate, tiny_processor):
    batch = collate(
        [record("t", ["Which colour?", RED], ["red"]), record("t", ["And", BLUE, "this one here?"], ["blue"])]
    )
    assert labelled(batch, 0, tiny_processor) == "red<|im_end|>"
    assert labelled(batch, 1, tiny_processor) == "blue<|im_end|>"
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_a_drawing_is_learned_as_its_codes(collate, tiny_model, tiny_processor):
    batch = collate([record("t", ["a red square"], [RED])])
    pixels = tiny_processor.image_processor(RED, return_tensors="pt")["pixel_values"]
    assert labelled(batch, 0, tiny_processor) == (
        tiny_processor.drawing_text(tiny_model.encode_image(pixels)[0]) + "<|im_end|>"
    )
    assert "pixel_values" not in batch


def test_a_picture_in_the_prompt_stays_a_picture_when_the_answer_is_a_drawing(collate, tiny_processor):
    batch = collate([record("t", [RED, "make it blue"], [BLUE])])
    assert len(batch["pixel_values"]) == 1
    assert labelled(batch, 0, tiny_processor).startswith("<begin_of_image><img_")


def test_think_belongs_to_the_prompt(collate, tiny_processor):
    batch = collate([record("t", ["How many?"], ["<think>one, two</think>2"])])
    assert labelled(batch, 0, tiny_processor) == "one, two</think>2<|im_end|>"


def test_a_dropped_prompt_leaves_begin_of_image_and_the_drawing(make_model, tiny_processor, token_ids):
    model = make_model().train()
    batch = RecordCollator(model, tiny_processor, prompt_dropout=1.0)([record("t", ["a red square"], [RED])])
    seen = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert seen[0] == token_ids["<begin_of_image>"]
    assert (batch["labels"][0] == token_ids["<begin_of_image>"]).sum() == 0
    assert labelled(batch, 0, tiny_processor).startswith("<img_")


@pytest.fixture
def planned():
    example = record("t", ["a red square"], [RED], hint="Big.", steps="row 2: a square.")
    return guide(example, "steps", np.random.default_rng(0))


def test_a_drawing_is_learned_with_the_plan_before_it(collate, planned, tiny_processor):
    text = labelled(collate([planned]), 0, tiny_processor)
    assert text.startswith("row 2: a square.</think><begin_of_image><img_") and text.endswith("<|im_end|>")


def test_a_dropped_prompt_takes_the_plan_along(make_model, tiny_processor, token_ids, planned):
    model = make_model().train()
    batch = RecordCollator(model, tiny_processor, prompt_dropout=1.0)(
        [planned, record("t", ["a blue square"], [BLUE])]
    )
    for row in range(2):
        seen = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert seen[0] == token_ids["<begin_of_image>"]
        assert labelled(batch, row, tiny_processor) == tiny_processor.tokenizer.decode(seen[1:])
    assert torch.isfinite(model(**batch).loss)


def test_an_edit_can_be_learned_without_its_picture(make_model, tiny_processor):
    model = make_model().train()
    batch = RecordCollator(model, tiny_processor, prompt_dropout=1.0)([record("t", [RED, "make it blue"], [BLUE])])
    assert len(batch["pixel_values"]) == 1 and batch["attention_mask"].sum() == 1 + 4 + 1 + 1
    assert torch.isfinite(model(**batch).loss)


def test_pictures_of_prompts_and_answers_go_their_own_ways(collate, tiny_model, tiny_processor):
    edits = [record("t", [RED, "make it blue"], [BLUE]), record("t", ["a red square"], [RED])]
    batch = collate([*edits, record("t", [BLUE, "Which colour?"], ["blue"])])
    pixels = tiny_processor.image_processor([RED, BLUE], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixels)
    for row, picture in enumerate((BLUE, RED)):
        codes = encode(tiny_model, tiny_processor, [picture])[0]
        assert labelled(batch, row, tiny_processor) == tiny_processor.drawing_text(codes) + "<|im_end|>"


def test_encoding_keeps_what_guidance_needs(tiny_model, tiny_processor):
    example = record("t", ["a red square"], [RED], hint="Big.", steps="row 2: a square.")
    (encoded,) = encode_drawings([example], tiny_model, tiny_processor)
    assert {field: encoded[field] for field in ("task", "hint", "steps")} == {
        field: example[field] for field in ("task", "hint", "steps")
    }
    assert "<think>row 2: a square.</think><begin_of_image>" in "".join(
        part["text"] for part in guide(encoded, "steps", np.random.default_rng(0))["messages"][1]["content"]
    )


def test_prompts_are_never_dropped_in_evaluation(tiny_model, tiny_processor):
    batch = RecordCollator(tiny_model, tiny_processor, prompt_dropout=1.0)([record("t", ["a red square"], [RED])])
    assert batch["attention_mask"].all()


def test_pictures_are_pixels_between_minus_one_and_one():
    pixels = Pictures([record("t", ["red"], [RED])])[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]


COMPLETE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def written(folder, files) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text("{}" if name.endswith(".json") else "")
    return str(folder)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, files in ((9, COMPLETE), (20, COMPLETE), (100, COMPLETE[:2]), (120, COMPLETE), ("30-backup", COMPLETE)):
        written(tmp_path / f"checkpoint-{step}", files)
    (tmp_path / "checkpoint-120" / "trainer_state.json").write_text('{"log_history": [')
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "files",
    [
        ("adapter_model.safetensors", *COMPLETE[1:]),
        ("model.safetensors", "optimizer.bin", *COMPLETE[2:]),  # FSDP with full state dicts
        ("adapter_model.safetensors", "optimizer.bin", *COMPLETE[2:]),
        ("latest", "trainer_state.json"),  # DeepSpeed
        ("pytorch_model_fsdp_0", "optimizer_0", *COMPLETE[2:]),  # FSDP with sharded state dicts
        ("model.safetensors.index.json", *COMPLETE[1:]),
    ],
)
def test_adapters_shards_and_what_fsdp_writes_are_checkpoints_too(tmp_path, files):
    for name in files:
        assert last_checkpoint(tmp_path) is None
        whole = written(tmp_path / "checkpoint-3", [name])
    assert last_checkpoint(tmp_path) == whole


@dataclass
class Script:
    dataset: str | None = None
    judge_options: dict = field(default_factory=dict)


def test_a_training_goes_on_only_with_the_settings_it_began_with(tmp_path):
    def go_on(**fields):
        fields = {"output_dir": str(tmp_path), "use_cpu": True, "learning_rate": 1e-3, **fields}
        return resumed(TrainingArguments(**fields), Script())

    assert go_on(learning_rate=1e-2) is None
    assert go_on() is None, "what failed before its first checkpoint binds nobody"
    whole = written(tmp_path / "checkpoint-9", COMPLETE)
    assert go_on() == go_on(logging_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=8) == whole
    with pytest.raises(ValueError, match=r"output_dir .* other learning_rate .learning_rate was 0.001 and is 0.01"):
        go_on(learning_rate=1e-2)


@pytest.mark.parametrize("asked", ["nothing", "checkpoint-9", "half", "."])
def test_a_path_that_holds_no_whole_checkpoint_is_refused(tmp_path, asked):
    written(tmp_path / "half", COMPLETE[:3])
    training = TrainingArguments(str(tmp_path / "out"), use_cpu=True, resume_from_checkpoint=str(tmp_path / asked))
    for function in (is_finished, resumed):
        with pytest.raises(ValueError, match=r"resume_from_checkpoint must be a whole checkpoint, .* got .*"):
            function(training, Script())
    assert not (tmp_path / "out").exists()


def test_going_on_is_asked_for_by_true_and_forbidden_by_false(tmp_path):
    def go_on(asked):
        return resumed(TrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint=asked), Script())

    assert go_on("false") is None
    for asked in ("true", True, "last"):
        with pytest.raises(ValueError, match=f"resume_from_checkpoint is {asked}, and .* holds no whole checkpoint"):
            go_on(asked)
    whole = written(tmp_path / "checkpoint-9", COMPLETE)
    assert go_on("true") == go_on(True) == go_on("last") == go_on(None) == whole
    with pytest.raises(ValueError, match=r"resume_from_checkpoint is false, and .* holds a training that has begun"):
        go_on("false")


def test_a_training_that_was_cut_short_may_end_earlier_but_not_before_where_it_is(tmp_path):
    def go_on(**fields):
        return resumed(TrainingArguments(str(tmp_path), use_cpu=True, **fields), Script())

    assert go_on(max_steps=100) is None
    whole = written(tmp_path / "checkpoint-40", COMPLETE)
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text('{"global_step": 40, "epoch": 2.0}')
    assert go_on(max_steps=50) == go_on(max_steps=40) == go_on(num_train_epochs=3) == whole
    for shorter in ({"max_steps": 39}, {"num_train_epochs": 1.9}):
        with pytest.raises(
            ValueError, match=r"must not be less than what .*checkpoint-40 has behind it, 40 steps or 2 ep"
        ):
            go_on(**shorter)


def skip_unused(rank: int, folder: str) -> list[set[str]]:
    """In steps without pictures and with some in the second process alone, the weights that the optimizer moves."""
    moved = []
    for pictures in (False, rank == 1):
        model = DPSForConditionalGeneration.from_pretrained(folder).train()
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters():
            is_vision = "vision_tower" in name or "connector" in name
            used = not is_vision or (pictures and ".head." not in name)
            weight.grad = torch.full_like(weight, float(used)) if weight.requires_grad else None
        training = SimpleNamespace(world_size=2, device=torch.device("cpu"))
        SkipUnusedParts().on_pre_optimizer_step(training, None, None, model=model)
        torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
        moved.append({name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])})
    return moved


def test_a_step_without_pictures_in_any_process_leaves_the_parts_that_read_them(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    for moved in run_on_two(skip_unused, tmp_path, str(tmp_path)):
        without, with_some = ({name.split(".")[1] for name in names} for names in moved)
        assert without == {"language_model"}
        assert with_some == {"language_model", "vision_tower", "connector"}
        assert not any(".vision_tower." in name and ".head." in name for name in moved[1]), "the pooling head"


def test_a_training_does_not_go_on_with_other_data_under_the_same_name(tmp_path):
    training = TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    for text in ("a", "b"):
        Dataset.from_dict({"text": [text]}).save_to_disk(tmp_path / text)
    (tmp_path / "a").rename(tmp_path / "data")
    script = Script(str(tmp_path / "data"), {"model": "judge", "max_calls": 1})
    resumed(training, script)
    whole = written(tmp_path / "out" / "checkpoint-9", COMPLETE)
    assert resumed(training, replace(script, judge_options={"model": "judge", "max_calls": 9})) == whole
    with pytest.raises(ValueError, match="other judge_options"):
        resumed(training, replace(script, judge_options={"model": "another"}))
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "b").rename(tmp_path / "data")
    with pytest.raises(ValueError, match="other fingerprint of the dataset"):
        resumed(training, script)


def test_curves_are_drawn_for_training_and_evaluation(tmp_path):
    log = [
        {"step": 1, "loss": 3.0, "epoch": 0.1},
        {"step": 2, "loss": 2.0, "epoch": 0.2},
        {"step": 2, "eval_loss": 2.5},
    ]
    plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 100


def test_trl_trains_on_records_as_they_are(make_model, tiny_processor, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    records = [record("i2t", [RED, "Which colour?"], ["red"]), record("i2t", [BLUE, "Which colour?"], ["blue"])]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, learning_rate=0.1, report_to="none",
            save_strategy="no", max_length=None, use_cpu=True, bf16=False,
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=tiny_processor,
    ).train()  # fmt: skip
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    still = {name for name in before if name not in moved}
    assert all("image_tokenizer" in name or "head" in name for name in still), still


def test_trl_trains_on_drawings_as_code_text(make_model, tiny_processor, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    records = encode_drawings([record("t2i", ["red"], [RED]), record("t2i", ["blue"], [BLUE])], model, tiny_processor)
    assert [r["images"] for r in records] == [[], []]
    rows = [{"messages": r["messages"]} for r in records]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), max_steps=20, per_device_train_batch_size=2, learning_rate=0.03, report_to="none",
            save_strategy="no", use_cpu=True, bf16=False, logging_steps=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_processor,
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 2


STOCK = {
    "max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01, "report_to": "none", "save_strategy": "no",
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1,
}  # fmt: skip


def chat(text: str, role: str) -> list[dict]:
    return [{"role": role, "content": text}]


def prompts_with_pictures_and_without(images: list, **columns: list) -> Dataset:
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    text = List({"role": Value("string"), "content": Value("string")})
    rows = {"prompt": [chat("Hi", "user")] * 4, "images": images, **columns}
    kinds = {name: Value("bool") if name == "label" else text for name in rows}
    return Dataset.from_dict(rows, Features({**kinds, "images": List(ImageFeature())}))


ANSWERS = {
    "sft": {"completion": [chat("red", "assistant")] * 4},
    "dpo": {"chosen": [chat("red", "assistant")] * 4, "rejected": [chat("blue", "assistant")] * 4},
    "kto": {"completion": [chat("red", "assistant"), chat("blue", "assistant")] * 2, "label": [True, False] * 2},
    "grpo": {},
}


@pytest.mark.parametrize("images", [[[RED], None, None, [BLUE]], [[RED], None, [], [RED, BLUE]]])
@pytest.mark.parametrize("name", ANSWERS)
def test_stock_trl_trains_on_prompts_with_pictures_and_without(make_model, tiny_processor, tmp_path, name, images):
    import trl

    options, extra = dict(STOCK), {}
    if name == "grpo":  # which makes the `None` itself
        options |= {"num_generations": 2, "max_completion_length": 3, "per_device_train_batch_size": 8}
        extra = {"reward_funcs": lambda completions, **_: [float(i) for i in range(len(completions))]}
    else:
        options["max_length"] = None
    trainer_class, config_class = getattr(trl, f"{name.upper()}Trainer"), getattr(trl, f"{name.upper()}Config")
    if name in ("dpo", "kto"):
        extra = {"ref_model": make_model()}
    model = make_model()
    before = model.model.language_model.norm.weight.clone()
    trainer = trainer_class(
        model=model,
        args=config_class(str(tmp_path), **options),
        train_dataset=prompts_with_pictures_and_without(images, **ANSWERS[name]),
        processing_class=tiny_processor,
        **extra,
    )
    trainer.train()
    assert not torch.equal(model.model.language_model.norm.weight, before)
    assert all(np.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


def test_grpo_scores_prompts_without_pictures_by_themselves(make_model, tiny_processor, tmp_path):
    """A part of a batch that is scored at a time may hold no picture at all."""
    from trl import GRPOConfig, GRPOTrainer

    options = {**STOCK, "num_generations": 2, "max_completion_length": 3, "per_device_train_batch_size": 2}
    trainer = GRPOTrainer(
        model=make_model(),
        args=GRPOConfig(str(tmp_path), **options, steps_per_generation=4),
        reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
        train_dataset=prompts_with_pictures_and_without([[RED], None, None, [BLUE]]),
        processing_class=tiny_processor,
    )
    trainer.train()


# How pictures may be kept in a record


def kept_ways(picture: Image.Image, folder: Path) -> list:
    picture.save(folder / "picture.png")
    data = (folder / "picture.png").read_bytes()
    return [
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(folder / "picture.png")},
        data,
        str(folder / "picture.png"),
        folder / "picture.png",
        np.asarray(picture),
        np.asarray(picture).tolist(),
        np.asarray(picture).transpose(2, 0, 1) / 255,
        torch.from_numpy(np.asarray(picture).copy()),
    ]


@pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
def test_pictures_of_records_are_opened_however_they_are_kept(make_model, tiny_processor, tmp_path, collator):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    collate = collator(make_model(), tiny_processor)
    edit = record("t", [picture, "Draw it again."], [picture])  # in the question, and as an answer
    expected = collate([edit])
    for kept in kept_ways(picture, tmp_path):
        batch = collate([{**edit, "images": [kept, kept]}])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    plain = record("t", ["Say yes."], ["yes"])
    expected = collate([edit, plain])
    for nothing in (None, (), np.empty(0, dtype=object)):
        batch = collate([edit, {**plain, "images": nothing}])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        (None, r"record 1 of the batch: 'images'\[0\] holds no picture"),
        ({"bytes": None, "path": None}, r"record 1 of the batch: 'images'\[0\] holds no picture"),
        ({"bytes": b"x", "path": None}, "record 1 of the batch: .*corrupt or of an unknown format"),
        ("no/such.png", "record 1 of the batch: No picture at"),
        (7, "record 1 of the batch: A picture must be"),
    ],
)
def test_a_missing_picture_is_named_with_its_record(tiny_model, tiny_processor, collator, missing, complaint):
    right, wrong = (record("t", [RED, "What?"], ["red"]) for _ in range(2))
    with pytest.raises(ValueError, match=complaint):
        collator(tiny_model, tiny_processor)([right, {**wrong, "images": [missing]}])


def test_what_is_dropped_depends_on_the_batch_alone(make_model, tiny_processor):
    model = make_model().train()
    collate = RecordCollator(model, tiny_processor, prompt_dropout=0.5)
    examples = [record("t", [f"square {i}"], [RED]) for i in range(8)]
    first = collate(examples)
    torch.rand(7)  # a resumed run finds torch's own generator elsewhere
    again = collate(examples)
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(first[name], again[name])
    plain = RecordCollator(model, tiny_processor)(examples)
    assert not torch.equal(first["attention_mask"], plain["attention_mask"])  # something was dropped


def test_drawings_are_learned_at_their_own_size_not_at_the_towers(make_model, tiny_processor, monkeypatch):
    seen = []
    model = make_model()
    model.encode_image = lambda pixels: (
        seen.append(pixels.shape) or torch.zeros(len(pixels), model.config.grid_size**2)
    )
    monkeypatch.setattr(tiny_processor.image_processor, "size", {"height": 4, "width": 4})
    encode_drawings([record("t", ["a red square"], [RED])], model, tiny_processor)
    assert seen == [(1, 3, model.config.drawing_size, model.config.drawing_size)]
