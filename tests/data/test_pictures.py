from PIL import Image

from dps_hf.data.pictures import Pictures
from dps_hf.data.record import record


def test_pictures_are_pixels_between_minus_one_and_one():
    pixels = Pictures([record("t", ["red"], [Image.new("RGB", (16, 16), "red")])])[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]
