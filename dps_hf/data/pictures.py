"""Pictures of records as tensors, for models that take pictures only."""

import numpy as np
import torch
from PIL import Image

from dps_hf.data.mixture import Mixture


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB picture as `(3, height, width)` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class Pictures(torch.utils.data.Dataset):
    """The first picture of each record of a [`Mixture`], as `{"pixel_values": (3, 64, 64) float32 in [-1, 1]}`."""

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels(self.mixture[index]["images"][0])}
