"""Drawing several codes in each pass gives what one code at a time gives."""

import math
from collections import Counter

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, LlamaConfig, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from dps_hf.model import windows_dps
from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.windows_dps import choose_tokens, make_noise


BOI, CODE_0 = 263, 265


class Nothing(LogitsProcessor):
    """A logits processor of the user's own, which changes nothing."""

    def __call__(self, input_ids, scores):
        assert input_ids is not None and scores.shape[-1] > 16
        return scores


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Silent(BaseStreamer):
    def put(self, value):
        pass

    def end(self):
        pass


@pytest.fixture
def big_model(make_model, make_config):
    """A model whose drawings have more codes than those of `tiny_model`, so that windows are of use."""
    fields = make_config().image_tokenizer_config.to_dict() | {"image_size": 32}
    return make_model(image_tokenizer_config=DPSImageTokenizerConfig(**fields))


@pytest.fixture
def draw(big_model, text_ids):
    """Draws with the same random numbers in each call; the first of three prompts is shorter than the others."""
    ids = torch.cat([text_ids, text_ids[:1].flip(1)])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def call(model=big_model, **options):
        torch.manual_seed(3)
        return model.generate(ids, attention_mask=mask, generation_mode="image", **options)

    return call


@pytest.fixture
def windows_only(monkeypatch):
    """Fails where codes are drawn one at a time."""

    def refuse(*args, **kwargs):
        raise AssertionError("one code at a time")

    monkeypatch.setattr("dps_hf.model.generation_dps.drawing_sample", refuse)


@pytest.fixture
def one_code_only(monkeypatch):
    """Fails where several codes are drawn in a pass."""

    def refuse(*args, **kwargs):
        raise AssertionError("several codes in a pass")

    monkeypatch.setattr("dps_hf.model.generation_dps.draw_in_windows", refuse)


def count_passes(model, run) -> int:
    passes = []
    hook = model.register_forward_pre_hook(lambda *args: passes.append(1))
    run()
    hook.remove()
    return len(passes)


# The same drawings


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("window", [2, 3, 16, 64, None])
def test_any_window_gives_the_same_drawings(draw, do_sample, guidance_scale, window):
    options = {"do_sample": do_sample, "guidance_scale": guidance_scale}
    assert draw(window=window, **options).equal(draw(window=1, **options))


@pytest.mark.parametrize(
    "warper",
    [
        {"temperature": 0.3},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.05},
        {"eta_cutoff": 0.05},
        {"renormalize_logits": True},
        {"temperature": 0.5, "top_k": 8, "top_p": 0.9, "min_p": 0.01},
    ],
)
def test_all_warpers_work_in_windows(draw, windows_only, monkeypatch, warper):
    drawn = draw(do_sample=True, guidance_scale=2.0, **warper)
    monkeypatch.undo()
    assert drawn.equal(draw(do_sample=True, guidance_scale=2.0, window=1, **warper))


def test_windows_make_fewer_passes(big_model, draw):
    """With one certain code a place, as at the end of training, all guesses are right."""
    with torch.no_grad():
        big_model.lm_head.weight[CODE_0 + 3] = 0
        big_model.lm_head.weight[CODE_0 : CODE_0 + 16] *= 1e-6
    passes = {window: count_passes(big_model, lambda window=window: draw(window=window)) for window in (1, 4, None)}
    assert passes[1] == big_model.config.num_codes + 1 and passes[None] < passes[4] < passes[1]


@pytest.mark.parametrize("window", [1, 4, None])
def test_drawings_of_one_prompt_equal_those_of_the_prompt_repeated(big_model, draw, text_ids, window):
    options = {"generation_mode": "image", "do_sample": True, "guidance_scale": 2.0, "window": window}
    torch.manual_seed(0)
    several = big_model.generate(text_ids, num_return_sequences=3, **options)
    torch.manual_seed(0)
    assert several.equal(big_model.generate(text_ids.repeat_interleave(3, 0), **options))


@pytest.mark.parametrize("window", [1, None])
def test_a_prompt_of_several_drawings_is_read_once(big_model, text_ids, window):
    shapes = []
    big_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    big_model.generate(text_ids, generation_mode="image", do_sample=True, num_return_sequences=5, window=window)
    assert shapes[0] == (2, 8) and all(columns < 8 for _, columns in shapes[1:] if window == 1)
    assert shapes[1][0] == 10


@pytest.mark.parametrize("decoder", ["gpt2", "qwen2", "gemma2", "gemma3"])
def test_any_decoder_draws_the_same_in_windows(make_model, make_decoder_config, draw, decoder):
    model = make_model(text_config=make_decoder_config(decoder))
    for options in ({}, {"do_sample": True, "guidance_scale": 3.0}):
        assert draw(model, **options).equal(draw(model, window=1, **options))


def test_eager_attention_draws_the_same(big_model, draw):
    expected = draw(window=1, guidance_scale=3.0)
    big_model.set_attn_implementation("eager")
    assert draw(guidance_scale=3.0).equal(expected)


def test_pictures_in_prompts_reach_windows(tiny_model, pictures):
    prompt = torch.tensor([[1, *[262] * 4, 2], [3, *[262] * 4, 4]])
    options = {"pixel_values": pictures[:2], "generation_mode": "image", "guidance_scale": 3.0}
    options |= {"do_sample": True, "num_return_sequences": 2}
    torch.manual_seed(0)
    expected = tiny_model.generate(prompt, window=1, **options)
    torch.manual_seed(0)
    assert tiny_model.generate(prompt, **options).equal(expected)


# What else the caller may ask for


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("asked", [{"output_scores": True}, {"output_logits": True}, {}])
def test_scores_and_logits_and_cache_equal_those_of_one_code_at_a_time(
    draw, windows_only, monkeypatch, asked, guidance_scale
):
    options = {
        "return_dict_in_generate": True,
        "do_sample": True,
        "top_k": 5,
        "guidance_scale": guidance_scale,
        **asked,
    }
    ours = draw(**options)
    monkeypatch.undo()
    theirs = draw(window=1, **options)
    assert ours.sequences.equal(theirs.sequences)
    for name in ("scores", "logits"):
        if f"output_{name}" in asked:
            torch.testing.assert_close(torch.stack(ours[name]), torch.stack(theirs[name]), rtol=1e-4, atol=1e-3)
        else:
            assert getattr(ours, name) is None
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length()
    for layer, expected in zip(ours.past_key_values.layers, theirs.past_key_values.layers):
        assert type(layer) is type(expected)
        seen = torch.ones(layer.keys.shape[2], dtype=torch.bool)
        seen[:8] = False  # padding and what the unguided half does not see hold anything
        torch.testing.assert_close(layer.keys[:, :, seen], expected.keys[:, :, seen], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(layer.values[:, :, seen], expected.values[:, :, seen], rtol=1e-3, atol=1e-3)


def test_text_goes_on_from_the_cache_of_a_drawing(big_model, draw):
    drawn = draw(return_dict_in_generate=True)
    more = torch.cat([drawn.sequences, torch.full((3, 1), 7)], 1)
    mask = torch.ones_like(more)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    expected = big_model.generate(more, **options)
    assert big_model.generate(more, past_key_values=drawn.past_key_values, **options).equal(expected)


def test_a_window_is_read_from_the_generation_config_and_saved(big_model, draw, tmp_path):
    full = count_passes(big_model, lambda: draw(window=1))
    given = GenerationConfig(window=1, do_sample=False)
    assert count_passes(big_model, lambda: draw(generation_config=given)) == full
    big_model.generation_config = GenerationConfig(window=1, pad_token_id=256)
    assert count_passes(big_model, draw) == full and count_passes(big_model, lambda: draw(window=4)) < full
    big_model.save_pretrained(tmp_path)
    assert DPSForConditionalGeneration.from_pretrained(tmp_path).generation_config.window == 1


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_below_one_is_refused(draw, window):
    with pytest.raises(ValueError, match=f"window must be 1 or more; got {window}"):
        draw(window=window)


# Where one code at a time serves


@pytest.mark.parametrize(
    "option",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"logits_processor": [Nothing()]},
        {"stopping_criteria": [Never()]},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"num_beams": 2},
    ],
)
def test_what_needs_one_code_at_a_time_gets_it(draw, one_code_only, option):
    assert draw(**option).equal(draw(window=1, **option))


def test_a_streamer_gets_one_code_at_a_time(big_model, text_ids, one_code_only):
    drawn = big_model.generate(text_ids[:1], generation_mode="image", streamer=Silent())
    assert drawn.equal(big_model.generate(text_ids[:1], generation_mode="image", window=1))


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}])
def test_frequencies_that_depend_on_the_pass_get_one_code_at_a_time(
    make_model, make_text_config, draw, one_code_only, rope
):
    model = make_model(text_config=make_text_config(LlamaConfig, rope_parameters=rope, max_position_embeddings=10))
    assert draw(model).equal(draw(model, window=1))


def test_numbers_that_overflow_are_refused(big_model, draw):
    with torch.no_grad():
        big_model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="logits overflowed"):
        draw(do_sample=True)


# The distribution


def test_choices_of_fixed_noise_are_those_of_the_gumbel_max_trick():
    """First the largest of block sums over noise, then the largest of the block; the rest is arithmetic."""
    torch.manual_seed(0)
    probabilities, noise = torch.rand(50, 13).softmax(-1), make_noise(50, 13, torch.device("cpu"))
    chosen = choose_tokens(probabilities, noise)
    for row, (first, second), choice in zip(probabilities, noise, chosen):
        blocks = [row[start : start + 4] for start in range(0, 13, 4)]
        block = max(range(4), key=lambda index: blocks[index].sum() / first[index])
        assert choice == 4 * block + max(range(len(blocks[block])), key=lambda i: blocks[block][i] / second[i])


def test_drawings_are_distributed_as_the_models_probabilities_say(tiny_model, text_ids):
    """Counts of whole drawings, four codes each, against their exact probabilities: chi-square."""
    model, rows = tiny_model, 4000
    options = {"generation_mode": "image", "do_sample": True, "guidance_scale": 2.0, "top_k": 3, "temperature": 3.0}
    torch.manual_seed(0)
    drawn = model.generate(text_ids[:1], num_return_sequences=rows, window=3, **options)[:, -5:-1] - CODE_0
    counts = Counter(map(tuple, drawn.tolist()))
    prefixes, exact = torch.zeros(1, 0, dtype=torch.long), torch.ones(1)
    with torch.no_grad():
        for _ in range(4):
            begin = torch.full((len(prefixes), 1), BOI)
            prompt = torch.cat([text_ids[:1].expand(len(prefixes), -1), begin, prefixes + CODE_0], 1)
            logits = model(prompt).logits[:, -1, CODE_0 : CODE_0 + 16]
            unguided = model(torch.cat([begin, prefixes + CODE_0], 1)).logits[:, -1, CODE_0 : CODE_0 + 16]
            logits = (unguided + 2 * (logits - unguided)) / 3
            logits = logits.masked_fill(logits < logits.topk(3).values[:, -1:], float("-inf"))
            chances = logits.softmax(-1)
            row, code = chances.nonzero(as_tuple=True)
            prefixes, exact = torch.cat([prefixes[row], code[:, None]], 1), exact[row] * chances[row, code]
    assert set(counts) <= set(map(tuple, prefixes.tolist()))
    expected = [(counts[tuple(codes)], rows * chance) for codes, chance in zip(prefixes.tolist(), exact.tolist())]
    common = [(seen, due) for seen, due in expected if due >= 5]
    rest = [sum(pair) for pair in zip(*[one for one in expected if one[1] < 5])] if len(common) < len(expected) else []
    cells = [*common, rest] if rest and rest[1] >= 5 else common
    statistic = sum((seen - due) ** 2 / due for seen, due in cells)
    degrees = len(cells) - 1
    assert degrees >= 5 and abs(statistic - degrees) < 4 * math.sqrt(2 * degrees)  # four standard deviations


def test_the_default_window_shrinks_with_the_batch_on_a_cpu():
    windows = [windows_dps.choose_window(rows, torch.device("cpu")) for rows in (1, 2, 8, 32, 256)]
    assert windows == sorted(windows, reverse=True) and windows[0] == 16 and windows[-1] >= 2
    assert windows_dps.choose_window(256, torch.device("cuda")) == 16


# The library's own ways of being faster


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_compiled_step_is_one_graph_for_all_drawings(big_model, text_ids, guidance_scale):
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    compile_config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compile_config._compile_all_devices = True  # on a CPU too
    options = {"generation_mode": "image", "guidance_scale": guidance_scale}
    static = {**options, "cache_implementation": "static", "compile_config": compile_config}
    expected = big_model.generate(text_ids, window=1, **options)
    assert big_model.generate(text_ids, **static).equal(expected)
    first = dict(counters["stats"])
    assert first["unique_graphs"] == 1 and not counters["graph_break"]
    for prompt in (text_ids.flip(0), text_ids[:, 2:], text_ids):
        assert big_model.generate(prompt, **static).equal(big_model.generate(prompt, window=1, **options))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("do_sample", [False, True])
def test_prompt_lookup_gives_the_same_words(tiny_model, text_ids, do_sample):
    prompt = torch.cat([text_ids[:1], text_ids[:1]], 1)
    options = {"max_new_tokens": 12, "do_sample": do_sample, "top_k": 1}
    looked_up = tiny_model.generate(prompt, prompt_lookup_num_tokens=3, **options)
    assert looked_up.equal(tiny_model.generate(prompt, **options))
