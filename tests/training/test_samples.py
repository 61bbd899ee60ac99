"""What the model draws and says is shown at each evaluation, and the training does not notice."""

import json
import os
import subprocess
import sys
import types

import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments
from two_processes import ROOT, launch

from dps_hf.data.record import record
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.training.collator import RecordCollator
from dps_hf.training.samples import Samples, find_obstacle, pause_training


COLOURS = ("red", "blue", "green", "black")
PICTURES = [Image.new("RGB", (16, 16), name) for name in COLOURS]
DRAWINGS = [record("draw", [f"a {name} square"], [picture]) for name, picture in zip(COLOURS, PICTURES)]
CAPTIONS = [
    record("describe", [picture, "What is it?"], [f"a {name} square"]) for name, picture in zip(COLOURS, PICTURES)
]


@pytest.fixture
def train(make_model, make_text_config, tiny_processor, tmp_path):
    """Trains a tiny model with dropout for four steps, with an evaluation after every second."""

    def run(*callbacks, name="run", report_to="none", eval_dataset=None):
        model = make_model(text_config=make_text_config(attention_dropout=0.3)).train()
        model.generation_config.max_new_tokens = 4
        args = TrainingArguments(
            str(tmp_path / name),
            max_steps=4,
            per_device_train_batch_size=2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            use_cpu=True,
            report_to=report_to,
            remove_unused_columns=False,
            prediction_loss_only=True,
        )
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=RecordCollator(model, tiny_processor),
            train_dataset=make_lazy_dataset(DRAWINGS + CAPTIONS),
            eval_dataset=eval_dataset or make_lazy_dataset(DRAWINGS + CAPTIONS),
            callbacks=list(callbacks),
        )
        trainer.train()
        return tmp_path / name, [row.get("loss", row.get("eval_loss")) for row in trainer.state.log_history]

    return run


def test_each_evaluation_writes_a_page_and_the_losses_stay_the_same(train, tiny_processor):
    folder, losses = train(Samples(DRAWINGS + CAPTIONS, tiny_processor, count=4))
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step-2.png", "step-4.png"]
    with Image.open(folder / "samples" / "step-2.png") as page:
        assert page.width > 1000 and page.height > 200
    folder, without = train(name="without")
    assert losses == without and not (folder / "samples").exists()


def test_several_evaluation_sets_make_one_page(train, tiny_processor, monkeypatch):
    sets = {"drawings": make_lazy_dataset(DRAWINGS), "captions": make_lazy_dataset(CAPTIONS)}
    samples, drawn = Samples(sets, tiny_processor, count=4), []
    own = samples._draw
    monkeypatch.setattr(samples, "_draw", lambda model: drawn.append(1) or own(model))
    train(samples, eval_dataset=sets)
    assert len(drawn) == 2
    assert {kind: len(turns) for kind, turns in samples._kinds.items()} == {"captions": 2, "drawings": 2}


def test_a_pause_restores_modes_and_random_numbers(make_model):
    model = make_model().train()
    model.model.vision_tower.eval()  # as a frozen part may be
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="full"), pause_training(model):
        assert not any(module.training for module in model.modules())
        torch.rand(3)
        raise RuntimeError("the disk is full")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model.model.language_model.training and not model.model.vision_tower.training


def test_pages_are_logged_to_tensorboard(train, tiny_processor, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    folder, _ = train(Samples(DRAWINGS, tiny_processor, count=2), report_to="tensorboard")
    events = EventAccumulator(str(folder / "runs" / "samples"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [2, 4]


TRACKED = """
import sys

from PIL import Image
from transformers import Trainer, TrainingArguments

from dps_hf.data.record import record
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.inference import load
from dps_hf.training.collator import RecordCollator
from dps_hf.training.samples import Samples

checkpoint, output = sys.argv[1:]
model, processor = load(checkpoint, device="cpu")
records = [record("draw", ["a red square"], [Image.new("RGB", (16, 16), "red")])] * 2
data = make_lazy_dataset(records)
args = TrainingArguments(
    output, max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no", use_cpu=True,
    report_to="trackio", project="dps", remove_unused_columns=False, prediction_loss_only=True,
)
trainer = Trainer(
    model, args, data_collator=RecordCollator(model, processor), train_dataset=data, eval_dataset=data,
    callbacks=[Samples(records, processor, count=1)],
)
trainer.train()

from trackio.sqlite_storage import SQLiteStorage

[run] = SQLiteStorage.get_runs("dps")
rows = SQLiteStorage.get_logs("dps", run)
history = trainer.state.log_history
for name, theirs in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
    logged = [row[theirs] for row in rows if theirs in row]
    assert len(logged) == 2 and logged == [row[name] for row in history if name in row], (name, logged, history)
pages = [row for row in rows if "samples" in row]
assert [(row["train/global_step"], row["samples"]["_type"]) for row in pages] == [
    (1, "trackio.image"), (2, "trackio.image")
], rows
"""


@pytest.mark.slow
def test_losses_and_pages_are_logged_to_trackio(saved_model, tmp_path):
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRACKED, saved_model, str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-5000:]


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_pages_are_logged_to_other_trackers(tiny_processor, monkeypatch, tracker, tmp_path):
    logged = []
    fake = types.SimpleNamespace(log=logged.append, Image=lambda page: ("picture", page.size))
    monkeypatch.setitem(__import__("sys").modules, tracker, fake)
    page = Image.new("RGB", (20, 10))
    Samples(DRAWINGS, tiny_processor)._log(page, types.SimpleNamespace(report_to=[tracker], output_dir=tmp_path), 7)
    assert logged == [{"samples": ("picture", (20, 10)), "train/global_step": 7}]


def test_only_the_main_process_draws(make_model, tiny_processor, tmp_path):
    state = types.SimpleNamespace(is_world_process_zero=False, global_step=1)
    args = types.SimpleNamespace(report_to=[], output_dir=str(tmp_path))
    Samples(DRAWINGS, tiny_processor).on_evaluate(args, state, None, model=make_model())
    assert not list(tmp_path.iterdir())


def test_a_model_that_must_not_generate_is_left_alone_with_a_sentence(make_model, tiny_processor, tmp_path, capsys):
    model = make_model()
    assert find_obstacle(model) is None
    model.is_loaded_in_4bit = True
    samples, args = Samples(DRAWINGS, tiny_processor), types.SimpleNamespace(report_to=[], output_dir=str(tmp_path))
    for step in (1, 2):
        state = types.SimpleNamespace(is_world_process_zero=True, global_step=step)
        samples.on_evaluate(args, state, None, model=model)
    assert capsys.readouterr().out.count("No samples are drawn: 4-bit weights on a CPU") == 1
    assert not list(tmp_path.iterdir())
    sharded = make_model()
    sharded.lm_head.weight.ds_id = 0  # as DeepSpeed marks them
    assert "sharded over several processes" in find_obstacle(sharded)


SCRIPT = """
import sys

from PIL import Image
from transformers import Trainer, TrainingArguments

from dps_hf.data.record import record
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.inference import load
from dps_hf.training.collator import RecordCollator
from dps_hf.training.samples import Samples

checkpoint, output, count = sys.argv[1:]
model, processor = load(checkpoint, device="cpu")
red = Image.new("RGB", (16, 16), "red")
records = make_lazy_dataset([record("draw", ["red"], [red]), record("read", [red, "What is it?"], ["red"])] * 2)
model.model.image_tokenizer.requires_grad_(False)
args = TrainingArguments(
    output, max_steps=2, per_device_train_batch_size=1, per_device_eval_batch_size=1, logging_steps=1,
    eval_strategy="steps", eval_steps=1, save_strategy="no", use_cpu=True, report_to="none",
    remove_unused_columns=False, prediction_loss_only=True,
)
callbacks = [Samples(records, processor, count=2)] if count == "2" else []
trainer = Trainer(model, args, RecordCollator(model, processor), records, records, callbacks=callbacks)
trainer.train()
trainer.save_state()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_on_two_processes_the_main_one_draws_or_says_why_it_cannot(saved_model, tmp_path, kind):
    (tmp_path / "train.py").write_text(SCRIPT)
    losses = {}
    for count in ("2", "0"):
        output = tmp_path / count
        command = launch(kind, str(tmp_path / "train.py"), saved_model, str(output), count)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert result.returncode == 0, result.stderr[-4000:]
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        losses[count] = [row.get("loss", row.get("eval_loss")) for row in history]
        if count == "2" and kind == "ddp":
            assert sorted(path.name for path in (output / "samples").iterdir()) == ["step-1.png", "step-2.png"]
        elif count == "2":
            assert result.stdout.count("No samples are drawn: the weights are sharded") == 1
            assert not (output / "samples").exists()
    assert losses["2"] == losses["0"]


def test_a_count_below_one_is_refused(tiny_processor):
    with pytest.raises(ValueError, match="count must be 1 or more; got 0"):
        Samples(DRAWINGS, tiny_processor, count=0)
