"""The arguments of trl that say which tokens have a loss, taken over by the collators of this package."""

from dataclasses import dataclass

from trl import SFTConfig


@dataclass
class LossArguments:
    """
    assistant_only_loss: whether only answers are learned. Otherwise all text is.
    completion_only_loss: whether the first `num_prompt_messages` messages of a record are left out of the loss. By
        default they are in records that have this field.
    packing: whether records are packed into rows without padding.
    """

    assistant_only_loss: bool = True
    completion_only_loss: bool | None = None
    packing: bool = False


def take_loss_arguments(training: SFTConfig) -> LossArguments:
    """Moves these arguments out of trl's, whose own implementations do not work with pictures."""
    taken = LossArguments(training.assistant_only_loss, training.completion_only_loss, training.packing)
    training.assistant_only_loss, training.completion_only_loss, training.packing = False, None, False
    return taken
