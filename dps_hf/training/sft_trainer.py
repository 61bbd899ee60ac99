"""trl's SFTTrainer with the loss of packed rows, which `examples/sft.py` uses with `packing: true`."""

from trl import SFTTrainer

from dps_hf.training.packed_loss import packed_loss


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
            loss = packed_loss(model, bare, inputs, codes_alone=False)
        return (loss, {"loss": loss}) if return_outputs else loss
