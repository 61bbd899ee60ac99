"""trl's SFTTrainer with a loss only where a label is due, which `examples/sft.py` uses."""

from torch.nn import functional as F
from trl import SFTTrainer

from dps_hf.training.packed_loss import packed_loss


class RecordSFTTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`], which computes logits only where a label is due, on a CPU too.

    On GPUs trl does so itself. On a CPU it computes those of all positions. The loss and the metrics are the same.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # trl computes these from the logits of all positions.
        needs_all = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        if inputs["labels"].device.type == "cpu" and not needs_all:
            labels = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
            due = labels != -100
            inputs = {**inputs, "shift_labels": labels[due][None], "positions_to_keep": due}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class PackingSFTTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`] for batches of a [`~dps_hf.training.packing.PackingCollator`], with their loss.

    trl's own packing takes no pictures, so `SFTConfig.packing` must be false, and the collator packs.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the labels of each batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        bare = self.accelerator.unwrap_model(model)
        bare = bare.get_base_model() if hasattr(bare, "get_base_model") else bare  # without the adapter's wrapper
        with self.accelerator.autocast():
            loss = packed_loss(model, bare, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss
