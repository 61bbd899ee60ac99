"""Trains the image encoder of DPS from nothing: which emoji is it, and which things are in the scene?

A small classifier on top of the tower, thrown away afterwards, makes features that are the same across art styles;
the captions of `train.py` then need far fewer pictures. Labels instead of captions: one forward pass of the small
tower costs a tenth of one of the whole model.

python examples/train_vision_tower.py --config examples/recipes/nano_vision_tower.yaml
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments, set_seed
from trl import TrlParser

from dps_hf.data import emoji, scenes
from dps_hf.training import Curves, last_checkpoint, to_pixels


EMOJI = sorted({pair.codepoints for pair in emoji.pairs("train")})
KINDS = [(s, c, shape) for s in scenes.SIZES for c in scenes.COLOURS for shape in scenes.SHAPES]


@dataclass
class ScriptArguments:
    """
    vision_config: fields of `SiglipVisionConfig`.
    scenes: share of scenes among the pictures, the rest is emoji.
    """

    vision_config: dict = field(default_factory=dict)
    scenes: float = 0.3


class LabelledPictures(torch.utils.data.Dataset):
    """Picture `i` depends on `(seed, i)` alone. `labels`: index of the emoji (-1 in scenes), then 0/1 for each kind of thing."""

    def __init__(self, seed: int, length: int, share_of_scenes: float):
        self.seed, self.length, self.share_of_scenes = seed, length, share_of_scenes
        self.index = {codepoints: index for index, codepoints in enumerate(EMOJI)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, i])
        if rng.random() < self.share_of_scenes:
            scene = scenes.sample_scene(rng)
            while scenes.held_out(scene):
                scene = scenes.sample_scene(rng)
            found = {(thing.size, thing.colour, thing.shape) for thing in scene.things}
            return {"pixel_values": to_pixels(scenes.render(scene)), "labels": [-1, *(k in found for k in KINDS)]}
        pairs = emoji.pairs("train")
        pair = pairs[rng.integers(len(pairs))]
        image = emoji.jitter_colours(emoji.augment(emoji.picture(pair), rng, pair.may_mirror), rng)
        return {"pixel_values": to_pixels(image), "labels": [self.index[pair.codepoints], *[0] * len(KINDS)]}


class HeldOutEmoji(torch.utils.data.Dataset):
    """Emoji in a style in which training never showed them."""

    def __len__(self) -> int:
        return len(emoji.pairs("validation"))

    def __getitem__(self, i: int) -> dict:
        pair = emoji.pairs("validation")[i]
        labels = [EMOJI.index(pair.codepoints), *[0] * len(KINDS)]
        return {"pixel_values": to_pixels(emoji.picture(pair)), "labels": labels}


class Classifier(nn.Module):
    """The tower and two linear heads on the mean of its features."""

    def __init__(self, tower: SiglipVisionModel):
        super().__init__()
        self.tower = tower
        self.emoji = nn.Linear(tower.config.hidden_size, len(EMOJI))
        self.kinds = nn.Linear(tower.config.hidden_size, len(KINDS))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.tower(pixel_values).last_hidden_state.mean(1)  # (batch, hidden_size)
        logits, names, is_emoji = self.emoji(features), labels[:, 0], labels[:, 0] >= 0
        # Sums over the whole batch: a batch without scenes or without emoji must not divide by zero.
        loss = F.cross_entropy(logits, names, ignore_index=-1, label_smoothing=0.1, reduction="sum")
        kinds = F.binary_cross_entropy_with_logits(self.kinds(features), labels[:, 1:].float(), reduction="none")
        return {"loss": (loss + kinds.sum(1)[~is_emoji].sum()) / len(labels), "logits": logits}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids[:, 0]).mean())}


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    set_seed(training.seed)
    # Model
    tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **script.vision_config))
    print(f"{tower.num_parameters():,} parameters")

    # Dataset
    length = (
        training.max_steps * training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    )

    # Training
    trainer = Trainer(
        model=Classifier(tower),
        args=training,
        train_dataset=LabelledPictures(training.seed, length, script.scenes),
        eval_dataset=HeldOutEmoji(),
        compute_metrics=accuracy,
        callbacks=[Curves()],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    trainer.save_state()
    print(trainer.evaluate())
    tower.save_pretrained(training.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
