"""All answers of a conversation are learned, whatever the template."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from dps_hf.data.dropouts import Dropouts
from dps_hf.data.mixture import Mixture
from dps_hf.data.record import Message
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.inference import encode, load
from dps_hf.nano.tasks import TASKS
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packing import PackingCollator


RED, BLUE = map(Image.fromarray, np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
# Templates of other models: without marks of what the assistant says; and one that leaves earlier thoughts out.
MESSAGE = """{{ "[" + m.role + "]" }}{% for part in m.content %}{% if part.type == "image" %}<image>{% else %}\
{{ part.text }}{% endif %}{% endfor %}{{ "[/]\n" }}"""
INVITE = '{% if add_generation_prompt %}{{ "[assistant]" }}{% endif %}'
PLAIN = f"{{% for m in messages %}}{MESSAGE}{{% endfor %}}{INVITE}"
UNSTABLE = PLAIN.replace("{{ part.text }}", "{{ part.text if m == messages[-1] else part.text | upper }}")


def chat(*texts: str, images=(), **fields) -> dict:
    """A conversation of turns, the user's first, in which `<image>` stands for a picture."""
    messages = []
    for i, text in enumerate(texts):
        content = []
        for j, piece in enumerate(text.split("<image>")):
            content += [{"type": "image"}] if j else []
            content += [{"type": "text", "text": piece}] if piece else []
        messages.append(Message(role=("user", "assistant")[i % 2], content=content))
    return {"messages": messages, "images": list(images), "task": "t", **fields}


def learn(make_model, processor, one: dict, collator=RecordCollator, **options) -> str:
    labels = collator(make_model(), processor, **options)([one])["labels"]
    return processor.tokenizer.decode(labels[labels != -100])


COLLATORS = pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
HELLO = chat("Hello", "Hi, übel 😀!", "Which <image> colour?", "red", "And <image>?", "<think>hm</think>blue")
HELLO["images"] = [RED, BLUE]


@COLLATORS
@pytest.mark.parametrize("template", [None, PLAIN])
def test_every_answer_is_learned_once(make_model, tiny_processor, collator, template):
    processor, end = copy.copy(tiny_processor), "[/]\n" if template else "<|im_end|>"
    processor.chat_template = template or processor.chat_template
    text = learn(make_model, processor, HELLO, collator)
    assert text == f"Hi, übel 😀!{end}red{end}hm</think>blue{end}"


@COLLATORS
def test_the_prompt_is_not_learned(make_model, tiny_processor, collator):
    for count, expected in (
        (0, "Hi, übel 😀!<|im_end|>red<|im_end|>hm"),
        (2, "red<|im_end|>hm"),
        (4, "hm"),
        (5, "hm"),
    ):
        text = learn(make_model, tiny_processor, {**HELLO, "num_prompt_messages": count}, collator)
        assert text == f"{expected}</think>blue<|im_end|>"


@COLLATORS
def test_losses_are_on_the_tokens_that_trl_says(make_model, tiny_processor, collator):
    one = chat("Hello", "Hi", "Which <image>?", "red", images=[RED])
    whole = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>"
    rest = "<|im_start|>user\nWhich ?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>"
    prompted = {**one, "num_prompt_messages": 2}
    answers = {"assistant_only_loss": True}
    for record, options, expected in (
        (one, {"assistant_only_loss": False}, f"{whole}\n{rest}"),
        (one, {"assistant_only_loss": False, "completion_only_loss": False}, f"{whole}\n{rest}"),
        (prompted, {"assistant_only_loss": False}, f"\n{rest}"),
        (prompted, {"assistant_only_loss": False, "completion_only_loss": True}, f"\n{rest}"),
        ({**one, "num_prompt_messages": 3}, {"assistant_only_loss": False}, "red<|im_end|>"),
        (prompted, {"assistant_only_loss": False, "completion_only_loss": False}, f"{whole}\n{rest}"),
        (prompted, answers, "red<|im_end|>"),
        (prompted, {**answers, "completion_only_loss": True}, "red<|im_end|>"),
        (prompted, {**answers, "completion_only_loss": False}, "Hi<|im_end|>red<|im_end|>"),
    ):
        text = learn(make_model, tiny_processor, record, collator, **options)
        if collator is PackingCollator and expected.startswith("<|im_start|>user\nHello"):
            expected = expected.removeprefix("<|im_start|>")  # nothing comes before the first token of a record
        assert text == expected, options
    with pytest.raises(ValueError, match=r"record 0 .*'Hello'\): completion_only_loss=True needs records with"):
        learn(make_model, tiny_processor, one, collator, completion_only_loss=True)


@COLLATORS
def test_plain_text_is_learned_whole_and_ends(make_model, tiny_processor, collator):
    plain = {"messages": [Message(role="assistant", content=[{"type": "text", "text": "<think>So it is."}])]}
    batch = collator(make_model(), tiny_processor)([{**plain, "images": [], "task": "t"}])
    length = len(tiny_processor.tokenizer("<think>So it is.<|im_end|>")["input_ids"])
    assert tiny_processor.tokenizer.decode(batch["input_ids"][0, :length]) == "<think>So it is.<|im_end|>"
    assert (batch["labels"] != -100).sum() == length - (collator is PackingCollator)


@COLLATORS
def test_drawings_of_several_turns_are_learned(make_model, tiny_processor, collator):
    model = make_model()
    for part in (0, -1):  # tells pictures apart, unlike fresh weights
        torch.nn.init.normal_(model.model.image_tokenizer.encoder[part].weight)
    one = chat("red", "<image>", "blue <image>", "Here: <image>", images=[RED, RED, BLUE])
    first, second = (tiny_processor.drawing_text(codes) for codes in encode(model, tiny_processor, [RED, BLUE]))
    assert first != second
    text = learn(lambda: model, tiny_processor, one, collator)
    assert text == f"{first}<|im_end|>Here: {second}<|im_end|>"


@COLLATORS
def test_dropouts_are_for_the_drawing_of_the_last_answer(make_model, tiny_processor, token_ids, collator):
    drawn_last = chat("Hello", "<image>", "blue", "<image>", images=[RED, BLUE])
    said_last = chat("red", "<image>", "What is it?", "a square", images=[RED])
    model = make_model()
    collate = collator(model, tiny_processor)
    for one in (drawn_last, said_last):
        dropped, plain = (collate([some[0]]) for some in (Dropouts([one], 0, prompt_dropout=1.0), [one]))
        count = int((dropped["labels"] != -100).sum())
        if one is drawn_last:
            assert count == tiny_processor.num_codes + 2, "codes, end-of-image and end; not the first drawing"
        else:
            assert count == (plain["labels"] != -100).sum()
    hidden = collate([Dropouts([drawn_last], 1, code_dropout=1.0)[0]])
    plain = collate([drawn_last])
    changed = (hidden["input_ids"] != plain["input_ids"]).nonzero()[:, 1]
    begins = (plain["input_ids"] == token_ids["<begin_of_image>"]).nonzero()[:, 1]
    assert len(changed) and (changed > begins[1]).all()


def test_a_template_whose_answers_cannot_be_found_is_refused(make_model, tiny_processor):
    processor = copy.copy(tiny_processor)
    processor.chat_template = UNSTABLE
    with pytest.raises(ValueError, match=r"record 0 .*renders messages\[:1\] differently .*{% generation %}"):
        learn(make_model, processor, HELLO)
    marked = "{% generation %}" + MESSAGE + "{% endgeneration %}"
    processor.chat_template = PLAIN.replace(MESSAGE, marked)
    with pytest.raises(ValueError, match=r"marks 6 answers .*has 3"):
        learn(make_model, processor, chat(*(["Hi"] * 6)))


@COLLATORS
def test_records_that_cannot_be_learned_are_refused(make_model, tiny_processor, collator):
    with pytest.raises(ValueError, match=r"record 0 of the batch \('a'\): none of the 1 messages is learned"):
        learn(make_model, tiny_processor, chat("a"), collator)
    with pytest.raises(ValueError, match="there is no answer of the assistant after the first 2"):
        learn(make_model, tiny_processor, chat("a", "b", "c", num_prompt_messages=2), collator)
    spelled = chat("a", "b")
    spelled["messages"][0]["content"][0]["text"] = "What does <image> mean?"
    with pytest.raises(ValueError, match="its text has 1 <image>, and there are 0 pictures"):
        learn(make_model, tiny_processor, spelled, collator)


@COLLATORS
def test_a_record_that_is_longer_than_a_table_of_positions_is_refused_by_name(
    make_model, make_config, make_decoder_config, tiny_processor, collator
):
    collate = collator(make_model(make_config(text_config=make_decoder_config("gpt2"))), tiny_processor)
    with pytest.raises(ValueError, match=r"record 1 of the batch \('Count'\) is too long: \d+ tokens, and .* is 256"):
        collate([chat("Hello", "Hi"), chat("Count", "1" * 300)])


@COLLATORS
def test_what_dps_nano_learns_is_the_last_answer_of_each_of_its_records(collator):
    model, processor = load(device="cpu")
    tokenizer = processor.tokenizer
    collate = collator(model, processor)
    mixture = Mixture({f"dps_hf.nano.tasks.{task}": 1 for task in TASKS}, seed=1, length=30)
    seen = set()
    for i in range(30):
        one = {**mixture[i], "more": []}
        seen.add(one["task"])
        (encoded,) = collate.encode([one])
        *question, answer = encoded["messages"]
        thinks = answer["content"][0]["text"].startswith("<think>")
        prompt = processor.apply_chat_template(question, add_generation_prompt=True, enable_thinking=thinks)
        text = processor.apply_chat_template(encoded["messages"])
        expected = tokenizer(text)["input_ids"][len(tokenizer(prompt)["input_ids"]) :]
        labels = collate([one])["labels"]
        assert labels[labels != -100].tolist() == expected
    assert len(seen) > 5


def test_weights_balance_the_answers_of_a_conversation(make_model, tiny_processor):
    batch = PackingCollator(make_model(), tiny_processor)([chat("a", "b" * 3, "c", "d" * 99)])
    weights = batch["loss_weights"][0]
    np.testing.assert_allclose(sorted({round(w, 5) for w in weights.tolist() if w}), [0.1, 0.5])
    assert torch.equal(weights > 0, batch["labels"][0] != -100)


@COLLATORS
def test_batches_of_a_data_set_keep_the_prompts_of_the_records_that_have_one(make_model, tiny_processor, collator):
    drawing = chat("red", "<image>", codes=[[1, 2, 3, 4]])
    records = [chat("a", "b", "c", "d", num_prompt_messages=2), chat("e", "f"), drawing]
    collate = collator(make_model(), tiny_processor)
    batch, expected = collate([*make_lazy_dataset(records)]), collate(records)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    rows = make_lazy_dataset(records)[:3]  # as loaders read them
    batch = collate([{name: column[i] for name, column in rows.items()} for i in range(3)])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
