"""Levels of guidance: the help that a training example gives, none, a hint or worked steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dps_hf.data.record import Message, Record


LEVELS = ("none", "hint", "steps")
"""No help, a hint after the question, or worked steps before the answer."""


@dataclass(frozen=True)
class Schedule:
    """Shares of the levels at the beginning and at the end of training. In between they change linearly.

    Raises:
        ValueError: an unknown level, a share below 0, or no share above 0.
    """

    start: Mapping[str, float] = field(default_factory=lambda: {"none": 1, "steps": 2})
    end: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            shares = getattr(self, name)
            if shares is None:
                continue
            for level, share in shares.items():
                if level not in LEVELS:
                    raise ValueError(f"{name} must give shares of {', '.join(LEVELS)}; got {level!r}.")
                if not 0 <= share < float("inf"):
                    raise ValueError(f"{name}[{level!r}] must be 0 or more and finite; got {share}.")
            if not any(shares.values()):
                raise ValueError(f"{name} must give at least one level a share above 0; got {dict(shares)}.")

    def level(self, rng: np.random.Generator, progress: float) -> str:
        """Draws a level; `progress` runs from 0 to 1."""
        ends = [
            np.array([shares.get(level, 0.0) for level in LEVELS], dtype=float)
            for shares in (self.start, self.end or self.start)
        ]
        first, last = (shares / shares.sum() for shares in ends)
        return str(rng.choice(LEVELS, p=first + (last - first) * min(max(progress, 0.0), 1.0)))


def read_schedules(guidance: Mapping[str, Mapping]) -> dict[str, Schedule]:
    """The schedule of each task, which a recipe writes as `{"my_task": {"start": {"steps": 2, "hint": 1}}}`.

    Raises:
        ValueError: something other than `start` and `end` is given for a task, or a schedule is wrong.
    """
    for task, shares in guidance.items():
        if not isinstance(shares, Mapping) or not set(shares) <= {"start", "end"}:
            raise ValueError(
                f"guidance[{task!r}] must have start, and end if shares change, such as "
                f"{{'start': {{'steps': 1}}}}; got {shares!r}."
            )
    return {task: Schedule(**shares) for task, shares in guidance.items()}


def guide(example: Record, level: str) -> Record:
    """Adds guidance of this level to a record. Records without help of this level stay unchanged.

    Raises:
        ValueError: the level is not one of `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}; got {level!r}.")
    messages = [Message(role=m["role"], content=list(m["content"])) for m in example["messages"]]
    if level == "hint" and example.get("hint"):
        messages[-2]["content"].append({"type": "text", "text": f" Hint: {example['hint']}"})
    elif level == "steps" and example.get("steps"):
        thought = f"<think>{example['steps']}</think>"
        messages[-1]["content"].insert(0, {"type": "text", "text": thought})
        if example.get("more"):
            example = {**example, "more": [(question, thought + answer) for question, answer in example["more"]]}
    return {**example, "messages": messages}
