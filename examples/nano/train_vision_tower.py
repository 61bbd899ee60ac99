"""Trains the image encoder of dps-nano from nothing; `dps_hf.nano.vision_tower` says how.

python examples/nano/train_vision_tower.py --config examples/recipes/nano/vision_tower.yaml

If the command is interrupted, the same command continues.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_model, save_model
from transformers import SiglipVisionConfig, SiglipVisionModel, TrainingArguments, set_seed
from trl import TrlParser

from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.nano.vision_tower import Student, Teacher, fit
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished


@dataclass
class ScriptArguments:
    """
    vision_config: fields of `SiglipVisionConfig`.
    teacher_steps: steps of the convolutional network, at twice the batch size and three times the learning rate.
    scenes: share of scenes among the tower's pictures, the rest is emoji.
    """

    vision_config: dict = field(default_factory=dict)
    teacher_steps: int = 1000
    scenes: float = 0.25


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    if is_finished(training, script):
        return
    set_seed(training.seed)
    choose_precision(training)
    training.remove_unused_columns = False
    config = SiglipVisionConfig(vision_use_head=False, **script.vision_config)

    # Teacher
    teacher, folder = Teacher(), Path(training.output_dir) / "teacher"
    weights = folder / "model.safetensors"
    if weights.exists():
        load_model(teacher, weights)
    else:
        lessons = copy.deepcopy(training)
        lessons.output_dir, lessons.max_steps = str(folder), script.teacher_steps
        lessons.per_device_train_batch_size *= 2
        lessons.learning_rate *= 3
        lessons.resume_from_checkpoint = None  # which is for the tower
        fit(teacher, script, lessons, 0.0, config.patch_size, lambda: save_model(teacher, weights))

    # Tower
    set_seed(training.seed)  # whether the teacher was trained just now or before an interruption
    tower = SiglipVisionModel(config)
    print(f"{tower.num_parameters():,} parameters")
    student = Student(tower, teacher)
    fit(
        student, script, training, script.scenes, config.patch_size, lambda: tower.save_pretrained(training.output_dir)
    )


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, TrainingArguments))
    set_training_defaults(parser)
    run_script(main, parser)
