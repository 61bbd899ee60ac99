"""The model that an evaluation asks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dps_hf.inference import ask, draw
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


@dataclass
class Subject:
    """A model, how it is asked, and how many items it is asked.

    items: the number of items that a figure comes from, if there are as many.
    seed: chooses the items and the random numbers of sampling.
    sampling: how drawings are sampled: `guidance_scale`, `do_sample` and any other argument of `generate`. Answers are
        greedy.
    """

    model: DPSForConditionalGeneration
    processor: DPSProcessor
    items: int
    seed: int
    sampling: dict
    batch_size: int = 48

    def rng(self, stream: str) -> np.random.Generator:
        """Random numbers that depend on the seed and on the name of the stream, and on nothing else."""
        return np.random.default_rng([self.seed, *stream.encode()])

    def draw(
        self,
        prompts: Sequence[str],
        pictures: list[Image.Image] | None = None,
        guided: bool = True,
        think: bool = False,
    ) -> list[Image.Image]:
        """One drawing for each prompt; `guided=False` draws without classifier-free guidance."""
        torch.manual_seed(self.seed)
        sampling = self.sampling if guided else {**self.sampling, "guidance_scale": 1.0}
        return draw(self.model, self.processor, prompts, pictures, think, self.batch_size, "drawings", **sampling)

    def ask(
        self, questions: Sequence[str], pictures: list[Image.Image] | None = None, think: bool = False
    ) -> list[str]:
        """One answer to each question, without the steps of its reasoning."""
        answers = ask(self.model, self.processor, questions, pictures, think, self.batch_size, "answers")
        return [answer.text for answer in answers]
