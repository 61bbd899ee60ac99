"""Trains the text tokenizer of DPS: byte-level BPE, English words mostly whole, then the tokens of DPS.

python examples/train_text_tokenizer.py --config examples/recipes/nano_text_tokenizer.yaml
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl import TrlParser

from dps_hf.data.guidance import Schedule
from dps_hf.data.mixture import Mixture
from dps_hf.nano import emoji


TEXT_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TASKS = {
    "dps_hf.nano.tasks.scenes_t2i": 1,
    "dps_hf.nano.tasks.scenes_palette": 0.3,
    "dps_hf.nano.tasks.scenes_i2t": 1,
    "dps_hf.nano.tasks.scenes_cot": 1,
    "dps_hf.nano.tasks.scenes_edit": 0.5,
    "dps_hf.nano.tasks.facts": 2,
}
IMAGE_SPECIAL = ["<image>", "<begin_of_image>", "<end_of_image>"]


@dataclass
class ScriptArguments:
    """
    vocab_size: all tokens together; a multiple of 64.
    codebook_size: how many of them are image codes.
    english: how often each English name counts; names in other languages count once.
    records: how many records of scenes and facts are read, hints, plans and worked steps among them.
    """

    output_dir: str
    vocab_size: int = 12288
    codebook_size: int = 4096
    english: int = 12
    records: int = 6000


def corpus(script: ScriptArguments) -> Iterator[str]:
    """Everything that the model will read or write, each emoji name after a space too, as it stands within a sentence."""
    for names in {pair.codepoints: pair.names for pair in emoji.all_pairs()}.values():
        for language, name in names.items():
            yield from [name, f" {name}"] * (script.english if language == "en" else 1)
    for questions in emoji.QUESTIONS.values():
        yield from questions * 10
    yield from [f", {style} style" for style in emoji.STYLES.values()] * 100
    guidance = dict.fromkeys(TASKS, Schedule({"none": 1, "hint": 1, "steps": 1}))
    for record in Mixture(TASKS, length=script.records, guidance=guidance):
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
    tokenizer.train_from_iterator(corpus(script), trainer)
    if (missing := script.vocab_size - script.codebook_size - len(special) - tokenizer.get_vocab_size()) > 0:
        raise ValueError(f"vocab_size is {missing} larger than the text has words for. Lower it to a multiple of 64.")
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
    whole = [pair.names["en"] for pair in emoji.all_pairs()]
    print(
        f"{tokenizer.get_vocab_size()} tokens; an English name is {sum(len(tokenizer.encode(n)) for n in whole) / len(whole):.2f} tokens"
    )
    for language in emoji.QUESTIONS:
        names = [pair.names[language] for pair in emoji.all_pairs()]
        print(language, f"{sum(len(tokenizer.encode(n)) for n in names) / len(names):.2f}")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
