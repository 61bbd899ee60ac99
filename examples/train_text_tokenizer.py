"""Trains the text tokenizer of a DPS: byte-level BPE on the text of any tasks, and special tokens and image codes.

python examples/train_text_tokenizer.py --config examples/recipes/nano/text_tokenizer.yaml
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl import TrlParser

from dps_hf.command_line import run_script
from dps_hf.data.guidance import Schedule
from dps_hf.data.mixture import Mixture, name_of
from dps_hf.resolve import resolve


TEXT_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IMAGE_SPECIAL = ["<image>", "<begin_of_image>", "<end_of_image>"]


@dataclass
class ScriptArguments:
    """
    output_dir: folder for the tokenizer.
    tasks: weights of tasks, given by dotted path, whose records are read with hints, plans and worked steps.
    records: the number of records.
    texts: dotted paths of functions that return further text, as an iterable of strings, for example names to keep
        whole.
    vocab_size: the number of all tokens; a multiple of 64.
    codebook_size: the number of image codes among them.
    """

    output_dir: str
    tasks: dict = field(default_factory=dict)
    records: int = 6000
    texts: list[str] = field(default_factory=list)
    vocab_size: int = 12288
    codebook_size: int = 4096


def read_texts(script: ScriptArguments) -> Iterator[str]:
    """The text that the tokenizer is trained on."""
    for path in script.texts:
        yield from resolve(path, "texts")()
    guidance = dict.fromkeys(map(name_of, script.tasks), Schedule({"none": 1, "hint": 1, "steps": 1}))
    for record in Mixture(script.tasks, length=script.records, guidance=guidance) if script.tasks else ():
        for message in record["messages"]:
            yield f"{message['role']}\n{''.join(part.get('text', '') for part in message['content'])}\n"


def main(script: ScriptArguments) -> None:
    special = [*TEXT_SPECIAL, "<think>", "</think>", *IMAGE_SPECIAL]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=script.vocab_size - script.codebook_size - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(read_texts(script), trainer)
    if (missing := script.vocab_size - script.codebook_size - len(special) - tokenizer.get_vocab_size()) > 0:
        raise ValueError(f"vocab_size is {missing} larger than this text can fill. Lower it, to a multiple of 64.")
    tokenizer.add_special_tokens(TEXT_SPECIAL)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.add_special_tokens(IMAGE_SPECIAL)
    tokenizer.add_tokens([AddedToken(f"<img_{code}>", normalized=False) for code in range(script.codebook_size)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(script.output_dir)
    lengths = [(len(tokenizer.encode(text).ids), len(text.encode())) for text in islice(read_texts(script), 10_000)]
    tokens, size = map(sum, zip(*lengths))
    print(
        f"{tokenizer.get_vocab_size()} tokens; one is {size / tokens:.2f} bytes of the text that they were trained on"
    )


if __name__ == "__main__":
    run_script(main, TrlParser((ScriptArguments,)))
