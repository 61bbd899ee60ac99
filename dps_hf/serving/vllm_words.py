"""Keeps image codes out of the answers of vLLM, whatever the client.

python -m vllm.entrypoints.openai.api_server --model dps_hf/checkpoints/dps-nano --trust-remote-code \\
    --logits-processors dps_hf.serving.vllm_words:WordsOnly

vLLM must be able to import this package. It refuses the option together with speculative decoding.
"""

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from dps_hf.serving.drawing_tokens import find_drawing_tokens


class WordsOnly(AdapterLogitsProcessor):
    """Bans the tokens of drawings, except in requests that choose tokens themselves, as those for drawings do."""

    def __init__(self, vllm_config, device, is_pin_memory):
        super().__init__(vllm_config, device, is_pin_memory)
        self.banned = torch.tensor(find_drawing_tokens(vllm_config.model_config.hf_config), device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params):
        return None if params.logit_bias or params.allowed_token_ids else self.ban

    def ban(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Sets the logits `(vocab_size,)` of the next token."""
        return logits.index_fill_(-1, self.banned, float("-inf"))
