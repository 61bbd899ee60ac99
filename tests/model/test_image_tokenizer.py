"""The image tokenizer: finite scalar quantisation, and that codes survive a round trip."""

import pytest
import torch

from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer, FiniteScalarQuantizer


LEVELS = [(8, 8, 8, 8), (8, 5, 5, 5), (4, 4), (3, 2), (2, 2, 2), (7,)]


@pytest.fixture
def tokenizer(tiny_config) -> DPSImageTokenizer:
    torch.manual_seed(0)
    tokenizer = DPSImageTokenizer(tiny_config.image_tokenizer_config).eval()
    torch.nn.init.normal_(tokenizer.encoder[-1].weight)  # latents so large that pictures differ in their codes
    return tokenizer


def codebook_size(levels) -> int:
    return torch.tensor(levels).prod().item()


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reachable_from_some_latent(levels):
    # Channels are independent: one channel at a time reaches all its digits while the others rest.
    quantizer, line = FiniteScalarQuantizer(levels), torch.linspace(-8, 8, 801)
    for channel, count in enumerate(levels):
        latents = torch.zeros(len(line), len(levels))
        latents[:, channel] = line
        digits = quantizer(latents)[1] // quantizer._radix(latents.device)[channel] % count
        assert digits.unique().tolist() == list(range(count))
        assert digits.equal(digits.sort().values)  # the higher the latent, the higher the digit


@pytest.mark.parametrize("levels", LEVELS)
def test_latents_stay_within_their_levels(levels):
    latents = torch.cat(
        [torch.randn(500, len(levels)) * 3, torch.full((1, len(levels)), 1e4), torch.full((1, len(levels)), -1e4)]
    )
    quantized, codes = FiniteScalarQuantizer(levels)(latents)
    assert quantized.abs().max() <= 1
    assert codes.min() == 0 and codes.max() == codebook_size(levels) - 1
    for channel, count in enumerate(levels):
        assert len(quantized[:, channel].unique()) == count


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_survive_dequantising_and_quantising_again(levels):
    quantizer, codes = FiniteScalarQuantizer(levels), torch.arange(codebook_size(levels))
    latents = quantizer.dequantize(codes)
    assert latents.unique(dim=0).shape == latents.shape and latents.abs().max() <= 1
    half_width = (torch.tensor(levels) - 1) * 1.001 / 2
    offset = torch.where(torch.tensor(levels) % 2 == 0, 0.5, 0.0)
    # What the encoder must give for the rounding to land on these latents: the bound, inverted.
    bounded = latents * (torch.tensor(levels) // 2)
    encoded = torch.atanh(((bounded + offset) / half_width).clamp(-0.9999, 0.9999)) - torch.atanh(offset / half_width)
    quantized, again = quantizer(encoded)
    assert again.equal(codes)
    torch.testing.assert_close(quantized, latents)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_passes_straight_through_the_rounding(levels):
    latents = torch.randn(20, len(levels), requires_grad=True)
    quantized, _ = FiniteScalarQuantizer(levels)(latents)
    quantized.sum().backward()
    counts = torch.tensor(levels)
    half_width, offset = (counts - 1) * 1.001 / 2, torch.where(counts % 2 == 0, 0.5, 0.0)
    slope = half_width * (1 - torch.tanh(latents + torch.atanh(offset / half_width)) ** 2) / (counts // 2)
    torch.testing.assert_close(latents.grad, slope.detach())


def test_half_precision_latents_keep_their_dtype_and_whole_codes():
    latents = torch.randn(100, 4)
    quantized, codes = FiniteScalarQuantizer((8, 8, 8, 8))(latents.bfloat16())
    assert quantized.dtype == torch.bfloat16 and codes.dtype == torch.int64
    assert quantized.float().equal(FiniteScalarQuantizer((8, 8, 8, 8)).dequantize(codes))


def test_codes_survive_encode_and_decode(tokenizer, pictures):
    outputs = tokenizer(pictures)
    codes = tokenizer.encode(pictures).image_tokens
    assert codes.shape == (3, 4) and codes.equal(outputs.image_tokens)
    torch.testing.assert_close(tokenizer.decode(codes), outputs.reconstruction)
    assert not codes[0].equal(codes[1])


def test_a_code_depends_on_its_own_patch_and_codes_run_along_the_rows(tokenizer, pictures):
    codes = tokenizer.encode(pictures[:1]).image_tokens[0]
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        changed = torch.ones_like(pictures[:1])
        patch = (..., slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        changed[patch] = pictures[:1][patch]
        assert tokenizer.encode(changed).image_tokens[0, index] == codes[index]
    assert len(codes.unique()) > 1


@pytest.mark.parametrize(
    ("image_size", "patch_size", "hidden_sizes", "grid"),
    [(16, 4, (8, 16), 2), (24, 2, (8, 8, 16), 3), (32, 8, (8,), 4)],
)
def test_shapes_follow_the_config(image_size, patch_size, hidden_sizes, grid):
    config = DPSImageTokenizerConfig(
        image_size=image_size, patch_size=patch_size, hidden_sizes=hidden_sizes, num_res_blocks=1, levels=(3, 3)
    )
    assert config.grid_size == grid and config.codebook_size == 9
    tokenizer, pixels = DPSImageTokenizer(config), torch.rand(2, 3, image_size, image_size)
    assert tokenizer.encode(pixels).image_tokens.shape == (2, grid * grid)
    assert tokenizer.decode(torch.zeros(2, grid * grid, dtype=torch.long)).shape == pixels.shape


def test_pixels_are_cut_at_inference_and_keep_their_gradient_in_training(tokenizer, pictures):
    torch.nn.init.constant_(tokenizer.decoder[-2].bias, 5.0)
    assert tokenizer(pictures).reconstruction.max() == 1
    tokenizer.train()
    assert tokenizer(pictures).reconstruction.max() > 1


def test_a_few_steps_lower_the_loss_and_move_every_parameter(tokenizer, pictures):
    tokenizer.train()
    before = {name: parameter.clone() for name, parameter in tokenizer.named_parameters()}
    optimizer, losses = torch.optim.SGD(tokenizer.parameters(), lr=0.05), []
    for _ in range(15):
        outputs = tokenizer(pictures)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outputs.loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, parameter in tokenizer.named_parameters() if parameter.equal(before[name])]


def test_the_loss_can_be_left_out(tokenizer, pictures):
    assert tokenizer(pictures, return_loss=False).loss is None


def test_saving_and_loading_keeps_codes_and_pixels(tokenizer, pictures, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = DPSImageTokenizer.from_pretrained(tmp_path)
    outputs, expected = loaded(pictures), tokenizer(pictures)
    assert outputs.image_tokens.equal(expected.image_tokens) and outputs.reconstruction.equal(expected.reconstruction)
