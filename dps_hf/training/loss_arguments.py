"""The arguments of trl that say which tokens are learned, for our collators in place of trl's."""

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
    """Takes these arguments out of trl's, whose own way of each refuses pictures."""
    taken = LossArguments(training.assistant_only_loss, training.completion_only_loss, training.packing)
    training.assistant_only_loss, training.completion_only_loss, training.packing = False, None, False
    return taken
