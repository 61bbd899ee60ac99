"""Image tokenizer of DPS: turns pixels into codes and back, with finite scalar quantisation."""

import math
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from .configuration_dps import DPSImageTokenizerConfig
from .library_dps import ModelOutput


@dataclass
class DPSImageTokenizerOutput(ModelOutput):
    """
    loss (`torch.Tensor` of shape `(1,)`): mean squared plus mean absolute error of the reconstruction.
    reconstruction (`torch.Tensor` of shape `(batch, channels, image_size, image_size)`): pixels in [-1, 1].
    image_tokens (`torch.Tensor` of shape `(batch, num_codes)`): codes in `[0, codebook_size)`.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None


class FiniteScalarQuantizer(nn.Module):
    """Rounds each latent channel to one of a few levels; the code is the mixed-radix number of the channels.

    No codebook is learned, so none can collapse. https://huggingface.co/papers/2309.15505, section 3.1.

    Shapes:
        latents: `(..., len(levels))`, any real numbers
        returns: quantised latents of the same shape in [-1, 1], and int64 codes `(...)` in `[0, prod(levels))`
    """

    def __init__(self, levels: list[int] | tuple[int, ...]):
        super().__init__()
        self.levels = tuple(levels)
        self.num_codes = math.prod(self.levels)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = torch.tensor(self.levels, device=latents.device)
        # float32: lower precision rounds to other codes
        dtype, latents = latents.dtype, latents.float()
        half_width = (levels - 1) * 1.001 / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)  # an even number of levels has no middle one
        bounded = torch.tanh(latents + torch.atanh(offset / half_width)) * half_width - offset
        rounded = bounded + (bounded.round() - bounded).detach()  # straight-through gradient
        codes = ((rounded.detach().round().long() + levels // 2) * self._radix(latents.device)).sum(-1)
        return (rounded / (levels // 2)).to(dtype), codes

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `(...)` to the quantised latents `(..., len(levels))` in [-1, 1], float32."""
        levels = torch.tensor(self.levels, device=codes.device)
        digits = codes.unsqueeze(-1) // self._radix(codes.device) % levels
        return (digits - levels // 2) / (levels // 2)

    def _radix(self, device: torch.device) -> torch.Tensor:
        return torch.cumprod(torch.tensor((1, *self.levels[:-1]), device=device), dim=0)


class PatchBlock(nn.Module):
    """A residual layer that sees one patch at a time."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, 2 * channels)
        self.linear2 = nn.Linear(2 * channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.linear2(F.silu(self.linear1(self.norm(hidden_states))))


def patch_encoder(num_inputs: int, width: int, num_blocks: int, num_outputs: int) -> nn.Sequential:
    blocks = [PatchBlock(width) for _ in range(num_blocks)]
    return nn.Sequential(nn.Linear(num_inputs, width), *blocks, nn.LayerNorm(width), nn.Linear(width, num_outputs))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.conv2(F.silu(self.conv1(F.silu(self.norm(hidden_states)))))


def split_colours(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits patches into patterns, which do not depend on colours, and colours, which do not depend on patterns.

    The two colours of a patch that differ most span a line; the pattern tells where along it each pixel lies. Texture
    compression does the same (S3TC, US patent 5956431): two colours for a block, and their mixture for each pixel.

    Shapes:
        pixels: `(patches, pixels, 3)`, RGB in [-1, 1]
        returns: patterns `(patches, pixels)`, from -1 (the darker colour) to 1 (the lighter one), 0 in plain patches;
            and colours `(patches, 9)`: the darker, the lighter, and the distance of the mean colour from their line
    """

    def farthest(colour: torch.Tensor) -> torch.Tensor:
        distances = (pixels - colour).square().sum(-1)
        return pixels.gather(1, distances.argmax(1)[:, None, None].expand(-1, 1, 3))

    mean = pixels.mean(1, keepdim=True)
    one = farthest(mean)
    other = farthest(one)  # each (patches, 1, 3)
    brightness = pixels.new_tensor((0.299, 0.587, 0.114))  # ITU-R BT.601
    swap = (one @ brightness > other @ brightness)[..., None]
    dark, light = torch.where(swap, other, one), torch.where(swap, one, other)
    middle, line = (dark + light) / 2, (light - dark) / 2
    length = line.square().sum(-1).clamp(min=1e-12).sqrt()  # (patches, 1)
    # The length is increased a little, so that noise in a plain patch does not become a pattern.
    patterns = ((pixels - middle) * line).sum(-1) / (length * (length + 0.05))
    rest = mean - middle
    off = rest - (rest * line).sum(-1, keepdim=True) / length[..., None] ** 2 * line
    return patterns, torch.cat([dark, light, off], dim=1).flatten(1)


class DPSImageTokenizer(transformers.PreTrainedModel):
    """Turns pixels into codes and back.

    The encoder sees one patch at a time, so that equal patches have equal codes, which a language model can predict.
    With `colour_levels` each patch has two codes, one for its pattern and one for its colours. A model that has drawn
    stars, and green things, has then seen all the codes of a green star. The patterns of all patches come before their
    colours, so that shapes do not depend on colours.
    """

    config_class = DPSImageTokenizerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ResidualBlock"]
    # It has no attention, so a model that contains it may use any implementation in its other parts.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DPSImageTokenizerConfig):
        super().__init__(config)
        widths, patch, blocks = config.hidden_sizes, config.patch_size, config.num_res_blocks
        pixels, num_channels = config.downsample_factor**2, len(config.levels)
        if config.colour_levels is None:
            pixels *= config.num_channels
        self.encoder = patch_encoder(pixels, widths[-1], config.num_encoder_blocks, num_channels)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        if config.colour_levels is not None:
            num_channels += len(config.colour_levels)
            self.colour_encoder = patch_encoder(9, widths[-1], config.num_encoder_blocks, len(config.colour_levels))
            self.colour_quantizer = FiniteScalarQuantizer(config.colour_levels)

        decoder: list[nn.Module] = [nn.Conv2d(num_channels, widths[-1], 3, padding=1)]
        for index, width in reversed(list(enumerate(widths))):
            decoder += [ResidualBlock(width) for _ in range(blocks)]
            if index > 0:
                decoder += [nn.Upsample(scale_factor=2), nn.Conv2d(width, widths[index - 1], 3, padding=1)]
        decoder += [
            nn.GroupNorm(8, widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], config.num_channels * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        ]
        self.decoder = nn.Sequential(*decoder)
        self.post_init()

    def encode(self, pixel_values: torch.Tensor) -> DPSImageTokenizerOutput:
        """Encodes `pixel_values` of shape `(batch, channels, image_size, image_size)` in [-1, 1]."""
        return DPSImageTokenizerOutput(image_tokens=self._quantize(pixel_values)[1].flatten(1))

    def decode(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Decodes `(batch, num_codes)`, row by row, to pixels `(batch, channels, image_size, image_size)` in [-1, 1].

        A pattern code in the place of a colour code, or the reverse, is read as some other code.
        """
        grid = self.config.grid_size
        codes = image_tokens.view(-1, len(self.config.codebooks), grid, grid)
        latents = self.quantizer.dequantize(codes[:, 0])
        if self.config.colour_levels is not None:
            colours = self.colour_quantizer.dequantize((codes[:, 1] - self.quantizer.num_codes).abs())
            latents = torch.cat([latents, colours], dim=-1)
        return self._render(latents.to(self.dtype))

    def forward(self, pixel_values: torch.Tensor, return_loss: bool = True) -> DPSImageTokenizerOutput:
        """Encodes and decodes; training minimises `loss`."""
        latents, codes = self._quantize(pixel_values)
        reconstruction = self._render(latents)
        loss = None
        if return_loss:
            loss = F.mse_loss(reconstruction, pixel_values) + 0.1 * F.l1_loss(reconstruction, pixel_values)
        return DPSImageTokenizerOutput(loss=loss, reconstruction=reconstruction, image_tokens=codes.flatten(1))

    def _quantize(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = F.pixel_unshuffle(pixel_values.to(self.dtype), self.config.downsample_factor)
        patches = patches.permute(0, 2, 3, 1)  # (batch, grid_size, grid_size, channels * pixels)
        if self.config.colour_levels is None:
            return self.quantizer(self.encoder(patches))
        pixels = patches.unflatten(-1, (3, -1)).transpose(-1, -2)  # (batch, grid_size, grid_size, pixels, 3)
        patterns, colours = split_colours(pixels.flatten(0, 2))
        grid = patches.shape[:3]
        latents, codes = self.quantizer(self.encoder(patterns.unflatten(0, grid)))
        of_colours, colour_codes = self.colour_quantizer(self.colour_encoder(colours.unflatten(0, grid)))
        codes = torch.stack([codes, colour_codes + self.quantizer.num_codes], dim=1)
        return torch.cat([latents, of_colours], dim=-1), codes

    def _render(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = self.decoder(latents.permute(0, 3, 1, 2))
        # Clamped at inference only: in training, pixels beyond black and white must keep their gradient.
        return pixels if self.training else pixels.clamp(-1, 1)


# The class of each kind of image tokenizer; both have `encode` and `decode`.
IMAGE_TOKENIZERS = {DPSImageTokenizerConfig.model_type: DPSImageTokenizer, "janus_vqgan": transformers.JanusVQVAE}
