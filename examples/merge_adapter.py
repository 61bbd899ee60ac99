"""Merges an adapter into its model: one folder that loads without peft.

python examples/merge_adapter.py --adapter runs/nano_dpo --output runs/nano_aligned
python examples/merge_adapter.py --adapter runs/nano_qlora --output runs/nano_aligned --load_in_4bit

With the `--load_in_4bit` or `--load_in_8bit` of its training, an adapter is merged into the quantised weights,
converted back to full precision. Otherwise it is merged into the original weights.

If tokens were added for the adapter, its folder must hold the tokenizer or processor that has them.
"""

from dataclasses import dataclass

import torch
from trl import ModelConfig, TrlParser

from dps_hf.command_line import run_script
from dps_hf.merging import load_adapter, merge, read_adapter_config
from dps_hf.training.loading import load_for_training


@dataclass
class ScriptArguments:
    """
    adapter: folder of the adapter.
    output: folder of the merged model.
    """

    adapter: str
    output: str


@torch.no_grad()
def compute_logits(model, processor) -> torch.Tensor:
    inputs = processor(text=["<|im_start|>user\nWhat is this?<|im_end|>\n"], return_tensors="pt").to(model.device)
    return model(**inputs).logits.float()


def main(script: ScriptArguments, arguments: ModelConfig) -> None:
    # Model
    config = read_adapter_config(script.adapter)
    arguments.model_name_or_path = arguments.model_name_or_path or config.base_model_name_or_path
    model, processor = load_for_training(arguments)
    if arguments.load_in_4bit or arguments.load_in_8bit:
        model = model.dequantize(torch.float32)
    # Merging
    adapted, processor = load_adapter(model, processor, script.adapter)
    before = compute_logits(adapted.eval(), processor)
    merged = merge(adapted)
    difference = (compute_logits(merged, processor) - before).abs().max().item()
    merged.save_pretrained(script.output)
    processor.save_pretrained(script.output)
    print(f"Merged into {script.output}; logits differ by at most {difference:.1e}")


if __name__ == "__main__":
    run_script(main, TrlParser((ScriptArguments, ModelConfig)))
