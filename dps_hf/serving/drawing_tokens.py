"""The tokens that only drawings hold."""

from dps_hf.model.configuration_dps import DPSConfig


def find_drawing_tokens(config: DPSConfig) -> list[int]:
    """The token ids that are not text: the placeholder of a picture, begin and end of image, and the image codes."""
    assert config.image_code_start_id is not None  # models that draw have one
    codes = range(config.image_code_start_id, config.image_code_start_id + config.codebook_size)
    return [config.image_token_id, config.boi_token_id, config.eoi_token_id, *codes]
