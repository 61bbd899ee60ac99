"""Loss curves as a picture."""

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from dps_hf.training import curves
from dps_hf.training.curves import Curves, plot_curves


@pytest.mark.parametrize("tracker", ["none", "tensorboard"])
def test_curves_are_drawn_with_every_checkpoint_unless_there_is_a_tracker(monkeypatch, tmp_path, tracker):
    drawn = []
    monkeypatch.setattr(curves, "plot_curves", lambda log, path: drawn.append(path))
    arguments, state, control = TrainingArguments(str(tmp_path), report_to=tracker), TrainerState(), TrainerControl()
    Curves().on_save(arguments, state, control)
    Curves().on_train_end(arguments, state, control)
    assert drawn == ([tmp_path / "curves.png"] * 2 if tracker == "none" else [])


def test_curves_are_drawn_for_training_and_evaluation(tmp_path):
    log = [
        {"step": 1, "loss": 3.0, "epoch": 0.1},
        {"step": 2, "loss": 2.0, "epoch": 0.2},
        {"step": 2, "eval_loss": 2.5},
    ]
    plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 100
