"""Generation: what each mode may emit, guidance against a reference of two forward passes, batch against single."""

import functools

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from dps_hf.model.generation_dps import sample_tokens


IMAGE, BOI, EOI, CODE_0 = 262, 263, 264, 265
IM_END, PAD = 258, 256
CODES = range(CODE_0, CODE_0 + 16)
NOT_TEXT = [IMAGE, BOI, EOI, *CODES]


class Prefer(LogitsProcessor):
    """Makes the given tokens all but certain, the first of them the most."""

    def __init__(self, *tokens: int):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        bonus = torch.zeros_like(scores)
        for rank, token in enumerate(self.tokens):
            bonus[:, token] = 1e4 - 100 * rank
        return scores + bonus


class Recorder(BaseStreamer):
    def __init__(self):
        self.chunks, self.ended = [], False

    def put(self, value):
        self.chunks.append(value)

    def end(self):
        self.ended = True


def is_drawing(tokens: torch.Tensor) -> bool:
    """Four codes and end-of-image, as they follow begin-of-image."""
    return len(tokens) == 5 and all(token in CODES for token in tokens[:4].tolist()) and tokens[4] == EOI


def pad_left(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    length = max(len(row) for row in rows)
    input_ids, attention_mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :], attention_mask[index, length - len(row) :] = row, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.fixture
def prompts() -> list[torch.Tensor]:
    """Texts of 3, 8 and 5 tokens; the first has begun its drawing already."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, 256, (length,), generator=generator) for length in (2, 8, 5)]
    rows[0] = torch.cat([rows[0], torch.tensor([BOI])])
    return rows


@pytest.fixture
def picture_prompts() -> list[torch.Tensor]:
    """Prompts with two pictures, none and one."""
    picture = torch.full((4,), IMAGE)
    return [
        torch.cat([torch.tensor([1]), picture, torch.tensor([2]), picture, torch.tensor([3, 4])]),
        torch.tensor([5, 6, 7]),
        torch.cat([picture, torch.tensor([8])]),
    ]


# Text


def test_text_mode_is_the_librarys_greedy_search_over_text(tiny_model, text_ids):
    generated = tiny_model.generate(text_ids, max_new_tokens=5)
    expected = text_ids
    for _ in range(5):
        logits = tiny_model(expected).logits[:, -1]
        logits[:, NOT_TEXT] = float("-inf")
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    assert generated.equal(expected)


@pytest.mark.parametrize("token", [*NOT_TEXT[:3], CODE_0, CODE_0 + 15])
@pytest.mark.parametrize("do_sample", [False, True])
def test_text_mode_never_emits_tokens_of_drawings(tiny_model, text_ids, token, do_sample):
    generated = tiny_model.generate(
        text_ids, max_new_tokens=6, logits_processor=[Prefer(token, *NOT_TEXT)], do_sample=do_sample
    )
    assert not torch.isin(generated, torch.tensor(NOT_TEXT)).any()


@pytest.mark.parametrize("wrap", [False, True])
def test_text_mode_skips_the_codes_and_keeps_every_score(make_model, text_ids, monkeypatch, wrap):
    model = make_model()
    if wrap:  # a head that is more than its weight
        model.lm_head.register_forward_hook(lambda module, args, output: output)
    options = {"do_sample": False, "max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    asked = []
    forward = model.forward

    def spy(*args, text_only=False, **kwargs):
        asked.append(text_only)
        return forward(*args, text_only=text_only, **kwargs)

    monkeypatch.setattr(model, "forward", functools.wraps(forward)(spy))
    skipped = model.generate(text_ids, **options)
    assert all(asked)
    whole = model.generate(text_ids, output_logits=True, **options)
    assert not any(asked[6:]) and whole.logits[0].isfinite().all()
    assert skipped.sequences.equal(whole.sequences)
    for scores, expected in zip(skipped.scores, whole.scores, strict=True):
        assert scores.shape == (len(text_ids), model.config.vocab_size)
        torch.testing.assert_close(scores, expected)


def test_tokens_after_the_codes_are_text(make_model, text_ids):
    model = make_model()
    model.resize_token_embeddings(model.config.vocab_size + 3)
    codes = slice(CODE_0, CODE_0 + model.config.codebook_size)
    whole = model(text_ids).logits
    logits = model(text_ids, text_only=True).logits
    assert logits[..., codes].isneginf().all()
    logits[..., codes] = whole[..., codes]
    torch.testing.assert_close(logits, whole)


def test_text_mode_stops_at_the_decoders_end_of_text(tiny_model, text_ids):
    generated = tiny_model.generate(text_ids, max_new_tokens=6, logits_processor=[Prefer(IM_END)])
    assert generated[:, 7:].tolist() == [[IM_END], [IM_END]]


def test_text_mode_reads_a_prompt_that_has_a_drawing(tiny_model):
    prompt = torch.tensor([[1, BOI, CODE_0, CODE_0 + 1, CODE_0 + 2, CODE_0 + 3, EOI, 2]])
    generated = tiny_model.generate(prompt, max_new_tokens=3)
    assert not torch.isin(generated[:, 8:], torch.tensor(NOT_TEXT)).any()


def test_text_of_a_padded_batch_equals_text_of_single_rows(tiny_model, picture_prompts, pictures):
    batch = tiny_model.generate(**pad_left(picture_prompts), pixel_values=pictures, max_new_tokens=6)
    for row, prompt, own in zip(batch, picture_prompts, (pictures[:2], None, pictures[2:])):
        single = tiny_model.generate(prompt[None], pixel_values=own, max_new_tokens=6)
        assert row[-6:].equal(single[0, -6:])


def test_text_from_embeddings_equals_text_from_tokens(tiny_model, text_ids):
    embeds = tiny_model.get_input_embeddings()(text_ids)
    expected = tiny_model.generate(text_ids, max_new_tokens=4)[:, 7:]
    assert tiny_model.generate(inputs_embeds=embeds, max_new_tokens=4).equal(expected)


def test_empty_input_is_refused_in_text_mode(tiny_model):
    with pytest.raises(ValueError, match=r"input_ids are empty.*Give a prompt"):
        tiny_model.generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=3)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("option", [{"max_time": 0.01}, {"stop_strings": ["<img_3>"]}])
def test_what_would_cut_a_drawing_off_is_refused_by_name(make_model, tiny_processor, text_ids, option, guidance_scale):
    model, [name] = make_model(), option
    image = {"generation_mode": "image", "guidance_scale": guidance_scale}
    for where in (option, {"generation_config": GenerationConfig(**option)}):
        with pytest.raises(ValueError, match=f"{name} could cut the drawing off.*Leave {name} out"):
            model.generate(text_ids, tokenizer=tiny_processor.tokenizer, **image, **where)
    setattr(model.generation_config, name, option[name])
    with pytest.raises(ValueError, match=f"{name} could cut the drawing off"):
        model.generate(text_ids, tokenizer=tiny_processor.tokenizer, **image)
    assert model.generate(text_ids, max_new_tokens=2, max_time=60.0, stop_strings=None).shape == (2, 9)


def test_a_drawing_that_a_criterion_of_ones_own_cut_off_is_told_by_its_cause(tiny_model, text_ids):
    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] > text_ids.shape[1] + 2)

    cut = tiny_model.generate(text_ids, generation_mode="image", stopping_criteria=[Stop()])
    with pytest.raises(ValueError, match="stopping criteria"):
        tiny_model.decode_image_tokens(cut)


def test_unknown_mode_is_refused_by_name(tiny_model, text_ids):
    with pytest.raises(ValueError, match="generation_mode must be one of text, image, interleaved; got 'video'"):
        tiny_model.generate(text_ids, generation_mode="video")


# Drawings


@pytest.mark.parametrize("do_sample", [False, True])
def test_image_mode_emits_one_whole_drawing(tiny_model, text_ids, do_sample):
    generated = tiny_model.generate(text_ids, generation_mode="image", do_sample=do_sample)
    assert generated.shape == (2, 7 + 1 + 5)
    assert generated[:, :7].equal(text_ids) and (generated[:, 7] == BOI).all()
    assert all(is_drawing(row[8:]) for row in generated)
    assert tiny_model.decode_image_tokens(generated).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("token", [0, IM_END, PAD, EOI, BOI, IMAGE])
def test_image_mode_emits_a_whole_drawing_whatever_the_model_prefers(tiny_model, text_ids, token):
    generated = tiny_model.generate(text_ids, generation_mode="image", logits_processor=[Prefer(token)])
    assert all(is_drawing(row[8:]) for row in generated)


@pytest.mark.parametrize(
    "length",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 256},
        {"max_length": 8},
        {"min_new_tokens": 50},
        {"min_length": 99},
        {"generation_config": GenerationConfig(max_new_tokens=2, min_new_tokens=2, eos_token_id=0)},
    ],
)
def test_image_mode_ignores_lengths(tiny_model, text_ids, length):
    expected = tiny_model.generate(text_ids, generation_mode="image")
    assert tiny_model.generate(text_ids, generation_mode="image", **length).equal(expected)


def test_image_mode_ignores_lengths_of_the_models_own_config(make_model, text_ids):
    model = make_model()
    expected = model.generate(text_ids, generation_mode="image")
    model.generation_config.update(max_new_tokens=3, min_new_tokens=30)
    assert model.generate(text_ids, generation_mode="image").equal(expected)


def test_image_mode_needs_no_padding_token(make_model, make_text_config, text_ids):
    model = make_model(text_config=make_text_config(pad_token_id=None))
    assert all(is_drawing(row[8:]) for row in model.generate(text_ids, generation_mode="image"))


def test_image_mode_appends_begin_of_image_only_where_it_is_missing(tiny_model, prompts):
    batch = tiny_model.generate(**pad_left(prompts), generation_mode="image")
    assert batch.shape == (3, 9 + 5)
    for row, prompt in zip(batch, prompts):
        begun = prompt if prompt[-1] == BOI else torch.cat([prompt, torch.tensor([BOI])])
        assert row[9 - len(begun) : 9].equal(begun) and is_drawing(row[9:])
        assert tiny_model.generate(prompt[None], generation_mode="image")[0, -5:].equal(row[-5:])


def test_image_mode_draws_from_an_empty_prompt(tiny_model):
    generated = tiny_model.generate(torch.zeros(2, 0), generation_mode="image")
    assert generated.shape == (2, 6) and (generated[:, 0] == BOI).all() and is_drawing(generated[0, 1:])
    assert generated[:1].equal(tiny_model.generate(torch.tensor([[BOI]]), generation_mode="image"))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_image_mode_knows_padding_without_a_mask(tiny_model, prompts, guidance_scale):
    options = {"generation_mode": "image", "guidance_scale": guidance_scale, "pad_token_id": PAD}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    batch = pad_left(prompts)
    told = tiny_model.generate(**batch, **options)
    untold = tiny_model.generate(batch["input_ids"], **options)
    torch.testing.assert_close(torch.stack(told.logits), torch.stack(untold.logits))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("option", [{"no_repeat_ngram_size": 1}, {"suppress_tokens": [EOI]}])
def test_no_option_keeps_a_drawing_from_ending(tiny_model, text_ids, guidance_scale, option):
    tokens = tiny_model.generate(text_ids, generation_mode="image", guidance_scale=guidance_scale, **option)
    for row in tokens[:, text_ids.shape[1] + 1 :].tolist():
        assert [token for token in row if token not in CODES] == [EOI]


def test_image_mode_needs_tokens(tiny_model, text_ids):
    embeds = tiny_model.get_input_embeddings()(text_ids)
    with pytest.raises(ValueError, match="needs input_ids"):
        tiny_model.generate(inputs_embeds=embeds, generation_mode="image")


def test_mode_and_guidance_are_read_from_the_generation_config(make_model, text_ids):
    model = make_model()
    guided = model.generate(text_ids, generation_mode="image", guidance_scale=4.0)
    given = GenerationConfig(generation_mode="image", guidance_scale=4.0)
    assert model.generate(text_ids, generation_config=given).equal(guided)
    model.generation_config.generation_mode, model.generation_config.guidance_scale = "image", 4.0
    assert model.generate(text_ids).equal(guided)
    assert model.generate(text_ids, generation_config=GenerationConfig(max_new_tokens=3)).equal(guided)
    assert model.generate(text_ids, generation_mode="text", max_new_tokens=3).shape == (2, 10)


# Interleaved


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("max_new_tokens", [4, 5, 6, 13])
def test_interleaved_mode_emits_whole_drawings_only(tiny_model, text_ids, max_new_tokens, guidance_scale):
    generated = tiny_model.generate(
        text_ids,
        generation_mode="interleaved",
        max_new_tokens=max_new_tokens,
        logits_processor=[Prefer(BOI)],
        guidance_scale=guidance_scale,
    )[:, 7:]
    assert generated.shape == (2, max_new_tokens)
    for row in generated:
        whole, rest = divmod(max_new_tokens, 6)
        assert all(row[6 * i] == BOI and is_drawing(row[6 * i + 1 : 6 * i + 6]) for i in range(whole))
        assert not torch.isin(row[max_new_tokens - rest :], torch.tensor(NOT_TEXT)).any()


def test_interleaved_mode_begins_no_drawing_beyond_max_length(tiny_model, text_ids):
    for limit in ({"max_length": 12}, {"generation_config": GenerationConfig(max_length=12, pad_token_id=PAD)}):
        generated = tiny_model.generate(
            text_ids, generation_mode="interleaved", logits_processor=[Prefer(BOI)], **limit
        )
        assert generated.shape == (2, 12) and not (generated == BOI).any()
    generated = tiny_model.generate(
        text_ids, generation_mode="interleaved", logits_processor=[Prefer(BOI)], max_length=13
    )
    assert (generated[:, 7] == BOI).all() and is_drawing(generated[0, 8:])


def test_a_drawing_that_the_prompt_has_begun_must_fit(tiny_model, text_ids):
    begun = torch.cat([text_ids, torch.tensor([[BOI, CODES.start]] * len(text_ids))], dim=1)
    with pytest.raises(ValueError, match=r"max_new_tokens must be at least 4, for the drawing .* got 3"):
        tiny_model.generate(begun, generation_mode="interleaved", max_new_tokens=3)
    generated = tiny_model.generate(begun, generation_mode="interleaved", max_new_tokens=4)
    assert all(is_drawing(row[text_ids.shape[1] + 1 :]) for row in generated)


def test_begin_of_image_among_words_begins_no_drawing(tiny_model, text_ids):
    for words in ([[BOI, 5]], [[BOI, CODES.start, 5]], [[BOI, CODES.start, EOI]]):
        prompt = torch.cat([text_ids, torch.tensor(words * len(text_ids))], dim=1)
        generated = tiny_model.generate(
            prompt, generation_mode="interleaved", logits_processor=[Prefer(BOI)], max_new_tokens=6
        )
        for row in generated[:, prompt.shape[1] :]:
            assert row[0] == BOI and is_drawing(row[1:])


def test_interleaved_mode_has_room_for_a_drawing_by_default(tiny_model, text_ids):
    generated = tiny_model.generate(text_ids[:1, :2], generation_mode="interleaved", logits_processor=[Prefer(BOI)])
    assert generated.shape == (1, 2 + 256 + 4) and (generated == EOI).sum() == (256 + 4) // 6


def test_interleaved_rows_draw_at_different_times(tiny_model):
    rows = [torch.tensor([1, 2, BOI, CODE_0, CODE_0 + 1]), torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8, BOI])]
    options = {"generation_mode": "interleaved", "max_new_tokens": 12, "guidance_scale": 3.0}
    batch = tiny_model.generate(**pad_left(rows), **options)
    for generated, prompt in zip(batch, rows):
        assert generated[-12:].equal(tiny_model.generate(prompt[None], **options)[0, -12:])
    assert is_drawing(batch[0, 3:8]) and is_drawing(batch[2, 5:10])


# Guidance


def reference_drawing(model, prompt, scale, pixel_values=None):
    """Drawing and guided logits of each step: two forward passes each, no cache."""
    config = model.config
    guided_ids = torch.cat([prompt, torch.tensor([BOI])])[None]
    unguided_ids, all_logits = torch.tensor([[BOI]]), []
    with torch.no_grad():
        for position in range(config.num_codes + 1):
            logits = model(guided_ids, pixel_values=pixel_values).logits[:, -1]
            unguided = model(unguided_ids).logits[:, -1]
            logits = unguided + scale * (logits - unguided)
            all_logits.append(logits)
            token = logits[:, CODE_0 : CODE_0 + 16].argmax(-1, keepdim=True) + CODE_0
            token = torch.full_like(token, EOI) if position == config.num_codes else token
            guided_ids, unguided_ids = torch.cat([guided_ids, token], 1), torch.cat([unguided_ids, token], 1)
    return guided_ids[0], torch.cat(all_logits)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_drawings_are_the_same_whether_all_logits_are_computed_or_those_of_codes(
    tiny_model, picture_prompts, pictures, scale
):
    options = {
        **pad_left(picture_prompts),
        "pixel_values": pictures,
        "generation_mode": "image",
        "guidance_scale": scale,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    codes, everything = (
        tiny_model.generate(**options, output_logits=output_logits) for output_logits in (False, True)
    )
    assert codes.sequences.equal(everything.sequences)
    torch.testing.assert_close(torch.stack(codes.scores), torch.stack(everything.scores))


def test_unguided_drawings_are_those_of_the_librarys_own_decoding(tiny_model, picture_prompts, pictures):
    options = {**pad_left(picture_prompts), "pixel_values": pictures, "generation_mode": "image"}
    librarys = tiny_model.generate(**options, output_attentions=True, return_dict_in_generate=True)
    assert librarys.attentions and tiny_model.generate(**options).equal(librarys.sequences)


@pytest.mark.parametrize(
    "cache", [{"cache_implementation": "dynamic"}, {"cache_implementation": "static"}, {"use_cache": False}]
)
@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5])
def test_guided_logits_equal_two_forward_passes(tiny_model, picture_prompts, pictures, scale, cache):
    output = tiny_model.generate(
        **pad_left(picture_prompts),
        pixel_values=pictures,
        generation_mode="image",
        guidance_scale=scale,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **cache,
    )
    for index, (prompt, own) in enumerate(zip(picture_prompts, (pictures[:2], None, pictures[2:]))):
        sequence, logits = reference_drawing(tiny_model, prompt, scale, own)
        assert output.sequences[index, -len(sequence) :].equal(sequence)
        torch.testing.assert_close(torch.stack(output.logits)[:, index], logits, rtol=1e-4, atol=1e-3)
        assert (torch.stack(output.scores)[:, index].argmax(-1) == sequence[-5:]).all()


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_guided_batch_equals_guided_rows_with_every_attention(make_model, prompts, attn_implementation):
    model = make_model()
    model.set_attn_implementation(attn_implementation)
    batch = model.generate(**pad_left(prompts), generation_mode="image", guidance_scale=5.0)
    for row, prompt in zip(batch, prompts):
        single = model.generate(prompt[None], generation_mode="image", guidance_scale=5.0)
        assert row[-6:].equal(single[0, -6:])


def test_guidance_of_one_and_none_equal_no_guidance(tiny_model, text_ids):
    expected = tiny_model.generate(text_ids, generation_mode="image")
    assert tiny_model.generate(text_ids, generation_mode="image", guidance_scale=1).equal(expected)
    assert tiny_model.generate(text_ids, generation_mode="image", guidance_scale=None).equal(expected)
    strong = tiny_model.generate(text_ids, generation_mode="image", guidance_scale=20.0)
    assert not strong.equal(expected)


def test_guidance_leaves_interleaved_text_alone(tiny_model, text_ids):
    options = {"generation_mode": "interleaved", "max_new_tokens": 5}  # too short for a drawing
    assert tiny_model.generate(text_ids, guidance_scale=9.0, **options).equal(tiny_model.generate(text_ids, **options))


def test_interleaved_guidance_equals_that_of_image_mode(tiny_model, text_ids):
    drawing = tiny_model.generate(text_ids, generation_mode="image", guidance_scale=4.0)
    begun = torch.cat([text_ids, torch.full((2, 1), BOI)], 1)
    for cache in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        mixed = tiny_model.generate(
            begun, generation_mode="interleaved", guidance_scale=4.0, max_new_tokens=5, **cache
        )
        assert mixed.equal(drawing)


@pytest.mark.parametrize("decoder", ["gpt2", "qwen2", "gemma3"])
def test_guided_batch_equals_guided_rows_with_other_decoders(make_model, make_decoder_config, prompts, decoder):
    model = make_model(text_config=make_decoder_config(decoder))
    batch = model.generate(**pad_left(prompts), generation_mode="image", guidance_scale=3.0)
    for row, prompt in zip(batch, prompts):
        single = model.generate(prompt[None], generation_mode="image", guidance_scale=3.0)
        assert row[-6:].equal(single[0, -6:])


def test_a_guidance_scale_in_the_config_does_not_double_text(make_model, text_ids):
    model = make_model()
    expected = model.generate(text_ids, max_new_tokens=4)
    model.generation_config.guidance_scale = 5.0
    batch_sizes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: batch_sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert model.generate(text_ids, max_new_tokens=4).equal(expected)
    hook.remove()
    assert batch_sizes == [2] * 4


def test_guidance_runs_one_doubled_batch_a_step(make_model, text_ids):
    model, batch_sizes = make_model(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: batch_sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.generate(text_ids, generation_mode="image", guidance_scale=5.0, window=1)
    assert batch_sizes == [4] * 5


@pytest.mark.parametrize("option", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 3}])
def test_guidance_refuses_beams_and_assistants(tiny_model, text_ids, option):
    with pytest.raises(ValueError, match="guidance_scale needs greedy decoding or sampling"):
        tiny_model.generate(text_ids, generation_mode="image", guidance_scale=3.0, **option)


def test_beams_draw_without_guidance(tiny_model, text_ids, picture_prompts, pictures):
    generated = tiny_model.generate(text_ids, generation_mode="image", num_beams=3)
    assert all(is_drawing(row[8:]) for row in generated)
    batch = tiny_model.generate(
        **pad_left(picture_prompts), pixel_values=pictures, generation_mode="image", num_beams=2
    )
    single = tiny_model.generate(
        picture_prompts[0][None], pixel_values=pictures[:2], generation_mode="image", num_beams=2
    )
    assert batch[0, -6:].equal(single[0, -6:])


# Pictures in the prompt


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_placeholders_without_their_pictures_are_refused(tiny_model, picture_prompts, mode):
    with pytest.raises(ValueError, match="placeholders of pictures, but pixel_values are None"):
        tiny_model.generate(**pad_left(picture_prompts), generation_mode=mode)


def test_a_conversation_goes_on_from_its_cache_without_the_pictures(tiny_model, picture_prompts, pictures):
    prompt, options = picture_prompts[0][None], {"max_new_tokens": 3, "return_dict_in_generate": True}
    first = tiny_model.generate(prompt, pixel_values=pictures[:2], **options)
    longer = torch.cat([first.sequences, prompt[:, :1]], 1)
    on = tiny_model.generate(longer, past_key_values=first.past_key_values, **options).sequences
    assert on.equal(tiny_model.generate(longer, pixel_values=pictures[:2], **options).sequences)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("cache", [{}, {"use_cache": False}])
def test_pictures_in_the_prompt_steer_the_drawing(tiny_model, picture_prompts, pictures, guidance_scale, cache):
    options = {"generation_mode": "image", "guidance_scale": guidance_scale, **cache}
    batch = tiny_model.generate(**pad_left(picture_prompts), pixel_values=pictures, **options)
    for row, prompt, own in zip(batch, picture_prompts, (pictures[:2], None, pictures[2:])):
        single = tiny_model.generate(prompt[None], pixel_values=own, **options)
        assert row[-6:].equal(single[0, -6:]) and is_drawing(row[-5:])
    logits = [
        tiny_model.generate(
            picture_prompts[2][None], pixel_values=own, output_logits=True, return_dict_in_generate=True, **options
        ).logits[0]
        for own in (pictures[2:], -pictures[2:])
    ]
    assert not torch.allclose(*logits, atol=0.1)


@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_repeated_rows_keep_their_pictures_together(tiny_model, picture_prompts, pictures, mode, guidance_scale):
    options = {"generation_mode": mode, "guidance_scale": guidance_scale, "max_new_tokens": 5}
    # Sampling from the single most likely token: several sequences of a row, all alike.
    batch = tiny_model.generate(
        **pad_left(picture_prompts), pixel_values=pictures, num_return_sequences=3, do_sample=True, top_k=1, **options
    )
    assert len(batch) == 9
    for index, (prompt, own) in enumerate(zip(picture_prompts, (pictures[:2], None, pictures[2:]))):
        single = tiny_model.generate(prompt[None], pixel_values=own, **options)
        for row in batch[3 * index : 3 * index + 3]:
            assert row[-5:].equal(single[0, -5:])


def test_repeated_rows_of_embeddings_keep_their_pictures_together(tiny_model, picture_prompts, pictures):
    options = {"pixel_values": pictures, "max_new_tokens": 5, "num_beams": 2}
    inputs = pad_left(picture_prompts)
    expected = tiny_model.generate(**inputs, **options)[:, -5:]
    embeds = tiny_model.get_input_embeddings()(inputs.pop("input_ids"))
    assert tiny_model.generate(inputs_embeds=embeds, **inputs, **options).equal(expected)


# Options of the library


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_seed_repeats_a_drawing_and_another_gives_another(tiny_model, text_ids, guidance_scale):
    options = {"generation_mode": "image", "do_sample": True, "temperature": 2.0, "guidance_scale": guidance_scale}

    def draw(seed):
        torch.manual_seed(seed)
        return tiny_model.generate(text_ids, num_return_sequences=4, **options)

    assert draw(0).equal(draw(0)) and not draw(0).equal(draw(1))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("option", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_sharp_sampling_equals_greedy(tiny_model, text_ids, guidance_scale, option):
    options = {"generation_mode": "image", "guidance_scale": guidance_scale}
    greedy = tiny_model.generate(text_ids, **options)
    assert tiny_model.generate(text_ids, do_sample=True, **option, **options).equal(greedy)


def test_lots_fall_as_the_chances_say():
    chances = torch.tensor([0.0, 0.5, 0.0, 0.1, 0.4, 0.0])
    torch.manual_seed(0)
    drawn = sample_tokens(chances.expand(100_000, -1)).bincount(minlength=6) / 100_000
    assert drawn[chances == 0].sum() == 0
    torch.testing.assert_close(drawn, chances, atol=0.006, rtol=0)  # four standard deviations


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("certain", [0, 2, 4095])
def test_the_only_possible_choice_is_drawn_whichever_number_comes(monkeypatch, number, certain):
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, number))
    chances = torch.zeros(1, 4096)
    chances[0, certain] = 0.9999999
    assert sample_tokens(chances).item() == certain


def test_chances_that_are_no_numbers_are_refused():
    with pytest.raises(RuntimeError, match=r"logits overflowed\. Load the model in float32"):
        sample_tokens(torch.tensor([[0.5, float("nan"), 0.5]]))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize(
    "options", [{"top_k": 4}, {"top_k": 1000}, {"top_p": 0.6}, {"min_p": 0.2}, {"temperature": 0.7}]
)
def test_scores_of_codes_alone_give_the_drawing_that_all_scores_give(tiny_model, text_ids, guidance_scale, options):
    options = {"generation_mode": "image", "do_sample": True, "guidance_scale": guidance_scale, **options}

    def draw(**others):
        torch.manual_seed(3)
        return tiny_model.generate(text_ids.repeat(8, 1), **options, **others)

    scored = draw(output_scores=True, return_dict_in_generate=True)
    assert scored.scores[0].shape[-1] == tiny_model.config.vocab_size
    assert draw().equal(scored.sequences)
    assert draw(logits_processor=[Prefer()]).equal(scored.sequences)  # prefers none


def test_top_k_chooses_among_codes_only(tiny_model, text_ids):
    output = tiny_model.generate(
        text_ids,
        generation_mode="image",
        do_sample=True,
        top_k=4,
        guidance_scale=3.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    allowed = output.scores[0].isfinite()
    assert (allowed.sum(-1) == 4).all() and not allowed[:, :CODE_0].any()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("mode", ["text", "image"])
def test_a_streamer_receives_prompt_and_tokens(tiny_model, text_ids, mode, guidance_scale):
    streamer = Recorder()
    generated = tiny_model.generate(
        text_ids[:1],
        generation_mode=mode,
        max_new_tokens=5,
        guidance_scale=guidance_scale,
        streamer=streamer,
    )
    assert streamer.ended and torch.cat([chunk.flatten() for chunk in streamer.chunks]).equal(generated[0])


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_output_class_holds_what_is_asked_for(tiny_model, text_ids, guidance_scale):
    output = tiny_model.generate(
        text_ids,
        generation_mode="image",
        guidance_scale=guidance_scale,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert len(output.scores) == 5 and output.scores[0].shape == (2, 281) and output.logits is None
    assert output.past_key_values.get_seq_length() == 12
    assert output.sequences.equal(
        tiny_model.generate(text_ids, generation_mode="image", guidance_scale=guidance_scale)
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_dynamic_static_and_no_cache_agree(tiny_model, prompts, guidance_scale):
    options = {**pad_left(prompts), "generation_mode": "image", "guidance_scale": guidance_scale}
    expected = tiny_model.generate(**options, use_cache=False)
    for implementation in ("dynamic", "static", "dynamic", "static"):
        assert tiny_model.generate(**options, cache_implementation=implementation).equal(expected)


def test_a_chat_draws_from_end_to_end(tiny_model, tiny_processor):
    content = [{"type": "image", "image": Image.new("RGB", (9, 5), "red")}, {"type": "text", "text": "again"}]
    chat = [{"role": "user", "content": content}]
    inputs = tiny_processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    generated = tiny_model.generate(**inputs, generation_mode="image", guidance_scale=2.0)
    pixels = tiny_model.decode_image_tokens(generated)
    (picture,) = tiny_processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert picture.size == (16, 16)
