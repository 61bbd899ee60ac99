"""Two codes for each patch: patterns do not depend on colours, and all patterns of a drawing come first."""

import pytest
import torch

from dps_hf.components import replace_image_tokenizer
from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.image_processing_dps import DPSImageProcessor
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer, split_colours
from dps_hf.model.processing_dps import DPSProcessor


PATTERNS = COLOURS = 8
WHITE, RED, GREEN, BLACK = (1, 1, 1), (0.8, -0.8, -0.7), (-0.8, 0.2, -0.6), (-0.9, -0.9, -0.9)


@pytest.fixture(scope="module")
def two_codes(make_config):
    """Builds the config of a model with two codes for each patch, out of 8 patterns and 8 colours."""
    codes = DPSImageTokenizerConfig(
        image_size=16, patch_size=4, hidden_sizes=(8, 16), num_res_blocks=1, levels=(4, 2), colour_levels=(2, 4)
    )

    def make(**overrides):
        return make_config(image_tokenizer_config=codes, **overrides)

    return make


@pytest.fixture
def tokenizer(two_codes) -> DPSImageTokenizer:
    torch.manual_seed(0)
    tokenizer = DPSImageTokenizer(two_codes().image_tokenizer_config).eval()
    for encoder in (tokenizer.encoder, tokenizer.colour_encoder):
        torch.nn.init.normal_(encoder[-1].weight)  # latents so large that pictures differ in their codes
    return tokenizer


def painted(coverage: torch.Tensor, colour, ground=WHITE) -> torch.Tensor:
    """`(patches, pixels, 3)` of a colour on a ground, more or less of it in each pixel."""
    return coverage[..., None] * torch.tensor(colour) + (1 - coverage[..., None]) * torch.tensor(ground)


@pytest.fixture
def coverage() -> torch.Tensor:
    """Five patches of 64 pixels, each with a pixel of the ground and one of the thing."""
    coverage = torch.rand(5, 64, generator=torch.Generator().manual_seed(2)).round(decimals=2)
    coverage[:, :2] = torch.tensor([0.0, 1.0])
    return coverage


def test_a_pattern_is_the_same_in_every_colour(coverage):
    red, green, black = (split_colours(painted(coverage, colour))[0] for colour in (RED, GREEN, BLACK))
    torch.testing.assert_close(red, green, atol=0.03, rtol=0)
    torch.testing.assert_close(red, black, atol=0.03, rtol=0)
    torch.testing.assert_close(red, 1 - 2 * coverage, atol=0.08, rtol=0)  # dark where the thing is


def test_colours_are_the_same_in_every_pattern(coverage):
    colours = split_colours(painted(coverage, GREEN))[1]
    expected = torch.tensor([*GREEN, *WHITE, 0, 0, 0])  # the darker, the lighter, and nothing off their line
    torch.testing.assert_close(colours, expected.expand(5, 9), atol=1e-5, rtol=0)


def test_a_third_colour_shows_off_the_line_of_two(coverage):
    pixels = painted(coverage, BLACK)
    pixels[:, 10:20] = torch.tensor(RED)
    assert split_colours(pixels)[1][:, 6:].abs().amax(1).min() > 0.05


def test_a_plain_patch_has_no_pattern():
    plain = torch.tensor(GREEN).expand(1, 64, 3)
    patterns, colours = split_colours(plain)
    assert patterns.abs().max() == 0
    torch.testing.assert_close(colours[0], torch.tensor([*GREEN, *GREEN, 0, 0, 0]))
    noisy = plain + 0.004 * torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(0))
    assert split_colours(noisy)[0].abs().max() < 0.4


def test_all_patterns_come_first_and_have_codes_of_their_own(tokenizer, pictures):
    codes = tokenizer.encode(pictures).image_tokens
    assert codes.shape == (3, 8) and codes.equal(tokenizer(pictures).image_tokens)
    patterns, colours = codes.chunk(2, dim=1)
    assert patterns.max() < PATTERNS <= colours.min() and colours.max() < PATTERNS + COLOURS
    torch.testing.assert_close(tokenizer.decode(codes), tokenizer(pictures).reconstruction)


def test_both_codes_depend_on_their_own_patch_and_run_along_the_rows(tokenizer, pictures):
    codes = tokenizer.encode(pictures[:1]).image_tokens[0]
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        changed = torch.ones_like(pictures[:1])
        patch = (..., slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        changed[patch] = pictures[:1][patch]
        assert tokenizer.encode(changed).image_tokens[0, [index, 4 + index]].equal(codes[[index, 4 + index]])
    assert len(codes.unique()) > 2


def test_any_codes_make_a_picture(tokenizer):
    codes = torch.randint(16, (50, 8), generator=torch.Generator().manual_seed(0))
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (50, 3, 16, 16) and pixels.isfinite().all()


def test_a_few_steps_lower_the_loss_and_move_every_parameter(tokenizer, pictures):
    tokenizer.train()
    before = {name: parameter.clone() for name, parameter in tokenizer.named_parameters()}
    optimizer, losses = torch.optim.SGD(tokenizer.parameters(), lr=0.05), []
    for _ in range(15):
        loss = tokenizer(pictures).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, parameter in tokenizer.named_parameters() if parameter.equal(before[name])]


def test_saving_and_loading_keeps_codes_and_pixels(tokenizer, pictures, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    outputs, expected = DPSImageTokenizer.from_pretrained(tmp_path)(pictures), tokenizer(pictures)
    assert outputs.image_tokens.equal(expected.image_tokens) and outputs.reconstruction.equal(expected.reconstruction)


def test_the_config_counts_both_codes(two_codes):
    config = two_codes()
    assert (config.grid_size, config.num_codes, config.codebook_size) == (2, 8, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour_levels": ()}, r"colour_levels must hold numbers of at least 2; got \(\)"),
        ({"colour_levels": (8, 1)}, r"colour_levels must hold numbers of at least 2; got \(8, 1\)"),
        ({"colour_levels": (8, 8), "num_channels": 1}, "colour_levels needs num_channels of 3 .* got 1"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DPSImageTokenizerConfig(**fields)


def test_drawings_end_after_both_codes_of_every_patch(make_model, two_codes, tiny_tokenizer, text_ids, token_ids):
    config = two_codes()
    model = make_model(config)
    processor = DPSProcessor(
        DPSImageProcessor(size={"height": 16, "width": 16}),
        tiny_tokenizer,
        num_image_tokens=4,
        grid_size=2,
        num_codes=8,
    )
    ids = model.generate(text_ids, generation_mode="image", do_sample=True)
    drawn = ids[:, text_ids.shape[1] :]
    assert drawn.shape[1] == 1 + config.num_codes + 1
    pixels = model.decode_image_tokens(ids)
    codes = drawn[drawn >= token_ids["<img_0>"]].view(2, 8) - token_ids["<img_0>"]
    torch.testing.assert_close(pixels, model.decode_image_tokens(codes))
    again = processor.tokenizer(processor.drawing_text(codes[0]))["input_ids"]
    assert again == drawn[0].tolist()


def test_processors_are_saved_with_their_number_of_codes(two_codes, tiny_tokenizer, tmp_path):
    processor = DPSProcessor(DPSImageProcessor(), tiny_tokenizer, grid_size=2, num_codes=8)
    processor.save_pretrained(tmp_path)
    assert DPSProcessor.from_pretrained(tmp_path).num_codes == 8
    with pytest.raises(ValueError, match="must be 8 for a grid of 2; got 4"):
        processor.drawing_text(range(4))


@torch.no_grad()
def test_an_image_tokenizer_takes_the_place_of_another_and_all_but_codes_is_as_it_was(
    make_model, tokenizer, tiny_processor, pictures, text_ids, tmp_path
):
    model, other = make_model(), make_model()
    processor = replace_image_tokenizer(model, tiny_processor, tokenizer)
    assert (model.config.num_codes, processor.num_codes, tiny_processor.num_codes) == (8, 8, 4)
    start = model.config.image_code_start_id
    codes = slice(start, start + 16)
    logits, expected = (one(input_ids=text_ids).logits for one in (model, other))
    assert not logits[..., codes].isclose(expected[..., codes]).all()
    logits[..., codes] = expected[..., codes]
    assert logits.equal(expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.encode_image(pictures).equal(tokenizer.encode(pictures).image_tokens)
    text = processor.drawing_text(again.encode_image(pictures)[0])
    assert len(processor.tokenizer(text)["input_ids"]) == 8 + 2


def test_its_own_image_tokenizer_leaves_a_model_as_it_was(make_model, tiny_processor, tmp_path):
    model, other = make_model(), make_model()
    model.model.image_tokenizer.save_pretrained(tmp_path)
    assert replace_image_tokenizer(model, tiny_processor, tmp_path) is tiny_processor
    assert all(weight.equal(other.state_dict()[name]) for name, weight in model.state_dict().items())


def test_codes_that_were_learned_stay_where_their_image_tokenizer_is_given_again(
    make_model, tokenizer, tiny_processor, tmp_path
):
    tokenizer.to(torch.bfloat16).save_pretrained(tmp_path / "codes")
    model = make_model()
    replace_image_tokenizer(model, tiny_processor, tmp_path / "codes")
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert replace_image_tokenizer(again, tiny_processor, tmp_path / "codes") is tiny_processor


def test_an_image_tokenizer_with_more_codes_is_refused_and_the_model_stays_whole(
    make_model, tokenizer, tiny_processor
):
    model = make_model()
    more = DPSImageTokenizerConfig(**{**tokenizer.config.to_dict(), "levels": (4, 4)})
    with pytest.raises(ValueError, match="as many codes as the one that it replaces, 16; got 24"):
        replace_image_tokenizer(model, tiny_processor, DPSImageTokenizer(more))
    assert model.config.codebook_size == 16 and model.model.image_tokenizer.config.levels == (4, 4)
