"""The image encoder of dps-nano and how it is trained: which emoji is this, and which things are where in the scene?

A vision transformer alone needs far more pictures than there are emoji. A small convolutional network, the teacher,
therefore learns first, from labels, and the tower learns from it (DeiT, arXiv 2012.12877, section 4). On emoji the
tower's mean feature follows the teacher's; on scenes each of its patches predicts the thing in it and where it is.
Teacher and heads are discarded afterwards.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, SiglipVisionModel, Trainer, TrainingArguments

from dps_hf.data.pictures import to_pixels
from dps_hf.model.image_processing_dps import to_rgb, to_square
from dps_hf.nano import emoji, scenes
from dps_hf.nano.views import sample_view
from dps_hf.training.curves import Curves
from dps_hf.training.resuming import train_and_save


EMOJI = sorted({pair.codepoints for pair in emoji.select_pairs("train")})
KINDS = [(s, c, shape) for s in scenes.SIZES for c in scenes.COLOURS for shape in scenes.SHAPES]
VIEWS = 0.65  # share of the pictures of scenes that are as people have them, in any geometry
WIDTH = 256  # of the convolutional network's features


# Pictures


class LabelledPictures(torch.utils.data.Dataset):
    """Picture `i` depends on `(seed, i)` alone. Emoji are turned, stretched, moved, tinted and partly covered.

    `labels` holds the index of the emoji (-1 in scenes), then for each patch the kind of thing whose centre lies in it
    (-1 for none), then for each patch the quarter of it, 0 to 3, in which that centre lies (-1 for none).
    """

    def __init__(self, seed: int, length: int, share_of_scenes: float, patch_size: int):
        self.seed, self.length, self.share_of_scenes, self.patch_size = seed, length, share_of_scenes, patch_size
        self.index = {codepoints: index for index, codepoints in enumerate(EMOJI)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, i])
        side = scenes.IMAGE_SIZE // self.patch_size
        things, quarters = np.full((2, side**2), -1)
        if rng.random() < self.share_of_scenes:
            image, scene = self._sample_scene(rng)
            for thing in scene.things:
                (row, below), (column, right) = (divmod(2 * v // self.patch_size, 2) for v in (thing.y, thing.x))
                patch = row * side + column
                things[patch] = KINDS.index((thing.size, thing.colour, thing.shape))
                quarters[patch] = 2 * below + right
            labels = torch.tensor([-1, *things, *quarters])
            return {"pixel_values": to_pixels(image), "labels": labels}
        pairs = emoji.select_pairs("train")
        pair = pairs[rng.integers(len(pairs))]
        labels = torch.tensor([self.index[pair.codepoints], *things, *quarters])
        chance = torch.Generator().manual_seed(int(rng.integers(2**63)))
        pixels = distort(to_pixels(emoji.get_picture(pair))[None], torch.tensor([pair.may_mirror]), chance)[0]
        return {"pixel_values": pixels, "labels": labels}

    def _sample_scene(self, rng: np.random.Generator) -> tuple[Image.Image, scenes.Scene]:
        if rng.random() < VIEWS:
            image, scene = sample_view(rng, "train")
            square = to_square(to_rgb(image), "pad-edge", scenes.IMAGE_SIZE, Image.Resampling.BICUBIC)
            return square.resize((scenes.IMAGE_SIZE, scenes.IMAGE_SIZE), Image.Resampling.BICUBIC), scene
        scene = scenes.sample_split(rng, "train", grounds=scenes.HALF_WHITE)
        return scenes.render(scene), scene


class HeldOutEmoji(torch.utils.data.Dataset):
    """Emoji in a style in which training never showed them."""

    def __init__(self, num_patches: int):
        self.num_patches = num_patches

    def __len__(self) -> int:
        return len(emoji.select_pairs("validation"))

    def __getitem__(self, i: int) -> dict:
        pair = emoji.select_pairs("validation")[i]
        labels = torch.tensor([EMOJI.index(pair.codepoints)] + [-1] * (2 * self.num_patches))
        return {"pixel_values": to_pixels(emoji.get_picture(pair)), "labels": labels}


def distort(pixels: torch.Tensor, mirror: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Distorts each picture in its own way.

    Args:
        pixels: `(batch, 3, height, width)` in [-1, 1].
        mirror: `(batch,)`, which pictures may be mirrored.
    """
    batch, size = len(pixels), pixels.shape[-1]

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(batch, *shape, generator=chance)

    def within(limit: float, *shape: int) -> torch.Tensor:
        return (2 * rand(*shape) - 1) * limit

    angle, scale, stretch = within(math.radians(12)), 1 / (1.04 + within(0.18)), 1 + within(0.1)
    flip = torch.where(mirror & (rand() < 0.5), -1.0, 1.0)
    rows = (
        torch.stack([angle.cos() * scale * stretch * flip, -angle.sin() * scale, within(0.16)], dim=1),
        torch.stack([angle.sin() * scale * flip, angle.cos() * scale / stretch, within(0.16)], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels - 1, grid, align_corners=False) + 1  # white fills the borders
    light = (1 - 0.2 * rand(1, 1, 1)) * (1 - 0.1 * rand(3, 1, 1))
    pixels = (pixels + 1) * light - 1
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * (1 + within(0.3, 1, 1, 1))
    x, y, half = (torch.randint(limit, (batch, 1, 1), generator=chance) for limit in (size, size, 12))
    side = torch.arange(size)
    covered = ((side[None, None, :] - x).abs() < half) & ((side[None, :, None] - y).abs() < half)
    return torch.where(covered[:, None], 1.0, pixels).clamp(-1, 1)


# Models


class Teacher(nn.Module):
    """Three convolutions on the picture at half its size; their feature is compared to one of each emoji by cosine."""

    def __init__(self, width: int = 48):
        super().__init__()

        def block(channels_in: int, channels: int) -> list[nn.Module]:
            conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
            return [conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]

        self.features = nn.Sequential(
            nn.AvgPool2d(2),
            *block(3, width),
            *block(width, 2 * width),
            *block(2 * width, 4 * width),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(4 * width * 16, WIDTH, bias=False),
            nn.BatchNorm1d(WIDTH),
        )
        self.names = nn.Parameter(torch.randn(len(EMOJI), WIDTH))
        self.temperature = nn.Parameter(torch.tensor(math.log(16)))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return self.temperature.exp() * F.normalize(features, dim=-1) @ F.normalize(self.names, dim=-1).T

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.logits(self.features(pixel_values.to(memory_format=torch.channels_last)))
        return {"loss": F.cross_entropy(logits, labels[:, 0], label_smoothing=0.1), "logits": logits}


class Student(nn.Module):
    """The tower, a projection of its mean feature into the teacher's space, and two heads on each patch."""

    def __init__(self, tower: SiglipVisionModel, teacher: Teacher):
        super().__init__()
        self.tower, self.teacher = tower, copy.deepcopy(teacher).requires_grad_(False)
        self.projection = nn.Linear(tower.config.hidden_size, WIDTH)
        self.things = nn.Linear(tower.config.hidden_size, len(KINDS) + 1)
        self.quarters = nn.Linear(tower.config.hidden_size, 4)

    def train(self, mode: bool = True) -> "Student":
        super().train(mode)
        self.teacher.eval()  # a teacher without dropout and batch statistics
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        is_emoji = labels[:, 0] >= 0
        if self.training:  # mixtures of two emoji are more pictures to agree on than there are emoji
            mixed, other = torch.rand(2, len(labels), device=labels.device)
            share = torch.where(is_emoji & (mixed < 0.5), 0.5 + 0.5 * other, 1.0)
            share = share.view(-1, 1, 1, 1).to(pixel_values)
            pixel_values = share * pixel_values + (1 - share) * pixel_values.roll(1, 0)
        patches = self.tower(pixel_values).last_hidden_state  # (batch, patches, hidden_size)
        projected = self.projection(patches.mean(1))
        with torch.no_grad():
            taught = self.teacher.features(pixel_values.to(memory_format=torch.channels_last))
        follow = 10 * (1 - F.cosine_similarity(projected, taught, dim=-1))
        things, quarters = labels[:, 1:].chunk(2, dim=1)
        tell = F.cross_entropy(self.things(patches).transpose(1, 2), things + 1, reduction="none").sum(1)
        where = self.quarters(patches).transpose(1, 2)
        tell = tell + F.cross_entropy(where, quarters, ignore_index=-1, reduction="none").sum(1)
        return {"loss": torch.where(is_emoji, follow, tell).mean(), "logits": self.teacher.logits(projected)}


def measure_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids[:, 0]).mean())}


def fit(
    model: nn.Module,
    script: Any,
    training: TrainingArguments,
    share: float,
    patch_size: int,
    save: Callable[[], None],
) -> None:
    """Trains a model on labelled pictures, a share of them scenes, or resumes its training, and saves it.

    Args:
        script: the arguments of the script, by which a training is known when it is resumed.
    """
    batch_size = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=LabelledPictures(training.seed, training.max_steps * batch_size, share, patch_size),
        eval_dataset=HeldOutEmoji((scenes.IMAGE_SIZE // patch_size) ** 2),
        compute_metrics=measure_accuracy,
        callbacks=[Curves()],
    )
    train_and_save(trainer, script, save=save)
    print(trainer.evaluate())
