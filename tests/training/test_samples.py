"""What the model draws and says is shown at each evaluation, and the training does not notice."""

import types

import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

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


def test_a_count_below_one_is_refused(tiny_processor):
    with pytest.raises(ValueError, match="count must be 1 or more; got 0"):
        Samples(DRAWINGS, tiny_processor, count=0)
