"""Pictures of every kind become the same square of pixels, and bad ones one clear error."""

import base64
import contextlib
import http.server
import io
import json
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import JanusImageProcessorPil

from dps_hf.model.image_processing_dps import DPSImageProcessor, open_picture, to_rgb


SIZE = 16


@pytest.fixture(scope="module")
def image_processor() -> DPSImageProcessor:
    return DPSImageProcessor(size={"height": SIZE, "width": SIZE})


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """16 x 16 pixels of noise."""
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels_of(image_processor: DPSImageProcessor, image) -> torch.Tensor:
    pixels = image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[1:] == (3, SIZE, SIZE) and pixels.dtype == torch.float32
    return pixels


def colour_of(image_processor: DPSImageProcessor, image) -> list[int]:
    """The colour of a picture that has only one."""
    pixels = pixels_of(image_processor, image)[0].flatten(1)
    assert (pixels.amax(1) - pixels.amin(1)).max() < 1e-6
    return ((pixels[:, 0] + 1) * 127.5).round().int().tolist()


# Letterbox


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (30, 40), (7, 5), (300, 100), (1, 1), (33, 16), (17, 64)])
def test_letterbox_equals_that_of_janus(image_processor, size):
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    settings = {
        "size": {"height": SIZE, "width": SIZE},
        "min_size": 1,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    janus = JanusImageProcessorPil(**settings)
    expected = janus(Image.fromarray(values), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels_of(image_processor, Image.fromarray(values)), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 100},
        {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.3, 0.2, 0.7]},
        {"do_resize": False},
        {"do_resize": False, "do_pad": False},
        {"do_pad": False},
        {"min_size": 14},
        {"resample": Image.Resampling.BILINEAR},
        {"size": {"height": 9, "width": 9}},
    ],
)
def test_every_setting_gives_the_pixels_of_janus(image_processor, options):
    values = np.random.default_rng(2).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    settings = {"size": {"height": SIZE, "width": SIZE}, "min_size": 1}
    janus = JanusImageProcessorPil(**settings, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = janus(Image.fromarray(values), return_tensors="pt", **options)["pixel_values"]
    pixels = image_processor(Image.fromarray(values), return_tensors="pt", **options)["pixel_values"]
    assert pixels.dtype == expected.dtype and torch.equal(pixels, expected)
    [listed] = image_processor(values, **options)["pixel_values"]
    assert torch.equal(torch.from_numpy(listed), expected[0])


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_pictures_keep_their_order_and_pixels_in_several_threads(image_processor, two_threads):
    random = np.random.default_rng(3)
    pictures = [random.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8) for i in range(8)]
    expected = torch.cat([pixels_of(image_processor, one) for one in pictures])
    assert torch.equal(image_processor(pictures, return_tensors="pt")["pixel_values"], expected)
    with pytest.raises(ValueError, match="Scale them"):
        image_processor([*pictures, np.full((4, 4, 3), -1.0)])


def test_a_size_that_is_no_square_is_refused(image_processor, picture):
    with pytest.raises(ValueError, match=r"size must be a square; got 16x32\. Make both sides equal\."):
        image_processor(picture, size={"height": 16, "width": 32})


def test_bars_of_the_letterbox_are_grey(image_processor):
    pixels = pixels_of(image_processor, Image.new("RGB", (32, 16), "white"))[0]
    assert (pixels[:, 4:12] == 1).all()
    bars = torch.cat([pixels[:, :4], pixels[:, 12:]], dim=1)
    torch.testing.assert_close(bars, torch.full_like(bars, 127 / 127.5 - 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_extreme_shapes_fit(image_processor, size):
    pixels = pixels_of(image_processor, Image.new("RGB", size, "red"))
    assert (pixels[0, 0] == 1).any()


# Other ways to make a square

GROUND, THING, SPOT = (200, 220, 240), (250, 0, 0), (0, 0, 0)


@pytest.fixture(params=["wide", "high"])
def long_picture(request) -> Image.Image:
    """32 x 16 pixels or 16 x 32: a ground, a thing in the middle, and a black pixel on the edge."""
    picture = Image.new("RGB", (32, 16), GROUND)
    picture.paste(THING, (14, 6, 18, 10))
    picture.putpixel((3, 0), SPOT)
    return picture if request.param == "wide" else picture.transpose(Image.Transpose.TRANSPOSE)


def fitted(picture: Image.Image, fit: str) -> np.ndarray:
    """Values of 0 to 255 that the model sees, `(16, 16, 3)`; pictures that are high are laid on their side."""
    processor = DPSImageProcessor(size={"height": SIZE, "width": SIZE}, fit=fit)
    values = ((pixels_of(processor, picture)[0] + 1) * 127.5).round().int().numpy().transpose(1, 2, 0)
    return values if picture.width > picture.height else values.transpose(1, 0, 2)


def test_a_crop_keeps_the_middle_and_every_pixel_of_it(long_picture):
    wide = long_picture if long_picture.width == 32 else long_picture.transpose(Image.Transpose.TRANSPOSE)
    assert np.array_equal(fitted(long_picture, "crop"), np.asarray(wide)[:, 8:24])


def test_stretching_shows_the_whole_picture_without_bars(long_picture):
    expected = np.asarray(long_picture.resize((16, 16), Image.Resampling.BICUBIC))
    values = fitted(long_picture, "stretch")
    assert np.array_equal(values, expected if long_picture.width == 32 else expected.transpose(1, 0, 2))
    assert (abs(values[[0, -1], 4:] - GROUND) <= 1).all()


@pytest.mark.parametrize(
    ("fit", "colour"), [("pad-grey", (127, 127, 127)), ("pad-white", (255, 255, 255)), ("pad-edge", GROUND)]
)
def test_bars_have_the_colour_that_is_asked_for(long_picture, fit, colour):
    values = fitted(long_picture, fit)
    assert (values[:4] == colour).all() and (values[12:] == colour).all()
    expected = long_picture.resize((16, 8) if long_picture.width == 32 else (8, 16), Image.Resampling.BICUBIC)
    inner = np.asarray(expected)
    assert np.array_equal(values[4:12], inner if long_picture.width == 32 else inner.transpose(1, 0, 2))


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad-grey", "pad-white", "pad-edge"])
def test_a_square_picture_is_the_same_in_every_way(image_processor, picture, fit):
    large = picture.resize((50, 50))
    for one in (picture, large):
        pixels = image_processor(one, fit=fit, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, pixels_of(image_processor, one))


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad-white", "pad-edge"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2, 3)])
def test_extreme_shapes_fit_in_every_way(image_processor, fit, size):
    pixels = image_processor(Image.new("RGB", size, "red"), fit=fit, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIZE, SIZE) and (pixels[0, 0] == 1).any()


def test_the_way_to_a_square_is_saved(tmp_path):
    DPSImageProcessor(fit="pad-edge", drawing_fit="stretch").save_pretrained(tmp_path)
    loaded = DPSImageProcessor.from_pretrained(tmp_path)
    assert (loaded.fit, loaded.drawing_fit) == ("pad-edge", "stretch")
    assert (DPSImageProcessor().fit, DPSImageProcessor().drawing_fit) == ("pad-grey", "crop")


def test_a_checkpoint_that_does_not_name_the_way_keeps_its_grey_bars(image_processor, long_picture, tmp_path):
    image_processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in ("fit", "drawing_fit")}))
    loaded = DPSImageProcessor.from_pretrained(tmp_path)
    assert loaded.fit == loaded.drawing_fit == "pad-grey"
    janus = JanusImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, min_size=1, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    assert torch.equal(pixels_of(loaded, long_picture), janus(long_picture, return_tensors="pt")["pixel_values"])


def test_an_unknown_way_is_refused(image_processor, picture):
    with pytest.raises(ValueError, match=r"must be one of crop, stretch, pad-grey, .*; got 'fill'\. Try 'crop'"):
        image_processor(picture, fit="fill")


def test_pixels_survive_the_round_trip(image_processor):
    every_value = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)).convert("RGB")
    pixels = pixels_of(image_processor, every_value)
    back = image_processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")["pixel_values"][0]
    assert np.array_equal(np.asarray(back), np.asarray(every_value))


def test_postprocess_rounds_and_clips(image_processor):
    pixels = torch.tensor([-9.0, -1.0, 0.0, 0.999, 1.0, 9.0]).expand(3, 2, 6)
    values = image_processor.postprocess([pixels])["pixel_values"][0]
    assert values[0, 0].tolist() == [0, 0, 128, 255, 255, 255] and values.dtype == np.uint8
    assert image_processor.postprocess(pixels[None], return_tensors="pt")["pixel_values"].shape == (1, 3, 2, 6)


# Modes


def test_transparency_turns_white(image_processor):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0] + [0, 0, 255] * 255)
    clear = [
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)),
        Image.new("LA", (4, 4), (0, 0)),
        encoded(palette, transparency=0),
        encoded(palette, "GIF", transparency=0),
        encoded(Image.new("RGB", (4, 4), "red"), transparency=(255, 0, 0)),
    ]
    for image in clear:
        assert colour_of(image_processor, image) == [255, 255, 255]
    assert colour_of(image_processor, Image.new("RGBA", (4, 4), (255, 0, 0, 128)))[0] == 255
    assert colour_of(image_processor, Image.new("RGBA", (4, 4), (255, 0, 0, 128)))[1] == pytest.approx(127, abs=1)
    assert colour_of(image_processor, encoded(palette)) == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 100, [100, 100, 100]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("YCbCr", (255, 128, 128), [255, 255, 255]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("I;16", 65535, [255, 255, 255]),
        ("I;16", 257, [1, 1, 1]),
        ("I", 65535, [255, 255, 255]),
        ("I", 200, [200, 200, 200]),
        ("F", 0.5, [128, 128, 128]),
        ("F", 100.0, [100, 100, 100]),
    ],
)
def test_every_mode_becomes_rgb(image_processor, mode, colour, expected):
    assert colour_of(image_processor, Image.new(mode, (4, 4), colour)) == expected


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bit_depth: int, colour_type: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG file; PIL cannot write 16-bit colours itself."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for _ in range(min(height, 64))))
    chunks = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_sixteen_bit_files_keep_their_brightness(image_processor):
    assert colour_of(image_processor, png(4, 4, 16, 0, struct.pack(">4H", *[0x8080] * 4))) == [128, 128, 128]
    colour = struct.pack(">12H", *[0xFFFF, 0x8080, 0x0000] * 4)
    assert colour_of(image_processor, png(4, 4, 16, 2, colour)) == [255, 128, 0]


GREY, RGB = 0, 2


@pytest.mark.parametrize(
    ("bit_depth", "colour_type", "row", "transparent", "expected"),
    [
        (16, GREY, struct.pack(">2H", 0x1234, 0x8080), [0x1234], [255, 128]),
        (16, GREY, struct.pack(">2H", 0x1234, 0x1235), [0x1234], [255, 18]),
        (16, GREY, struct.pack(">2H", 0, 0x8080), [0], [255, 128]),
        (8, GREY, bytes([3, 200]), [3], [255, 200]),
        (4, GREY, bytes([0x3C]), [3], [255, 204]),
        (2, GREY, bytes([0b10010000]), [2], [255, 85]),
        (1, GREY, bytes([0b10000000]), [0], [255, 255]),
        (1, GREY, bytes([0b01000000]), [0], [255, 255]),
        (16, RGB, struct.pack(">6H", *[0x1234] * 3, *[0x8080] * 3), [0x1234] * 3, [255, 128]),
        (16, RGB, struct.pack(">6H", *[12] * 3, *[0x8080] * 3), [12] * 3, [255, 128]),
        (8, RGB, bytes([12] * 3 + [128] * 3), [12] * 3, [255, 128]),
    ],
)
def test_the_transparent_value_of_a_png_turns_white(bit_depth, colour_type, row, transparent, expected):
    declared = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    data = png(2, 1, bit_depth, colour_type, row, declared)
    for picture in (open_picture(data), to_rgb(Image.open(io.BytesIO(data)))):
        assert np.asarray(picture).tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize("mode, value", [("I;16", 300), ("I;16B", 300), ("I", 300), ("F", 300.0), ("L", 30), ("1", 0)])
def test_the_transparent_value_of_a_picture_in_memory_turns_white(mode, value):
    image = Image.new(mode, (2, 1), value)
    image.putpixel((1, 0), 0 if value else 255)
    image.info["transparency"] = value
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(image).getpixel((1, 0)) == ((0, 0, 0) if value else (255, 255, 255))
    assert image.info["transparency"] == value


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa"])
def test_rare_modes_with_transparency_are_read(mode):
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    image = {"La": lambda: rgba.convert("LA").convert("La"), "PA": lambda: rgba.convert("PA")}.get(
        mode, lambda: rgba.convert(mode)
    )()
    assert image.mode == mode
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_animations_show_their_first_frame(image_processor, file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert colour_of(image_processor, data) == [255, 0, 0]
    opened = Image.open(io.BytesIO(data))
    opened.seek(2)
    assert colour_of(image_processor, opened) == [255, 0, 0]


def test_exif_rotation_is_undone(image_processor):
    upright = Image.new("RGB", (SIZE, SIZE), "red")
    upright.paste("blue", (0, 0, SIZE, SIZE // 2))  # blue on top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    stored = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert torch.equal(pixels_of(image_processor, stored), pixels_of(image_processor, upright))


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))  # by 90 degrees clockwise, as a number of 16 bits


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with tags of `(number, type, count, content of at most 4 bytes)`."""
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "tags",
    [
        [(0x0100, 2, 4, b"abc\0"), TURNED],  # ImageWidth as text
        [TURNED, (0x0111, 2, 4, b"abc\0")],  # StripOffsets as text
        [TURNED, (0x8769, 4, 1, struct.pack("<I", 99_999))],  # more tags beyond the end
        [TURNED, (0x8825, 2, 4, b"abc\0")],  # the place of GPS tags as text
        [TURNED, (0x010F, 2, 2**31, b"abcd")],  # the maker's name of 2 GB
        [TURNED, (0x010E, 99, 1, b"x")],  # an unknown type
        [(0x0112, 4, 1, struct.pack("<I", 6))],  # the orientation in 32 bits
        [(0x0112, 2, 2, b"6\0")],  # the orientation as text
        [(0x0112, 3, 2, struct.pack("<2H", 6, 6))],  # and twice
    ],
)
def test_odd_tags_beside_the_orientation_do_no_harm(image_processor, file_format, tags):
    upright = Image.new("RGB", (SIZE, SIZE), "red")
    upright.paste("blue", (0, 0, SIZE, SIZE // 2))  # blue on top
    stored = encoded(upright.transpose(Image.Transpose.ROTATE_90), file_format, exif=exif(*tags))
    for source in (stored, Image.open(io.BytesIO(stored))):
        pixels = (pixels_of(image_processor, source)[0] + 1) * 127.5
        assert pixels[0, 2:6, 4:12].max() < 60 < 200 < pixels[0, 10:14, 4:12].min()
        assert pixels[2, 10:14, 4:12].max() < 60 < 200 < pixels[2, 2:6, 4:12].min()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_no_exif_makes_a_picture_unreadable(file_format):
    image, whole, random = (
        Image.new("RGB", (8, 4), "red"),
        exif(TURNED, (0x0100, 2, 4, b"abc\0")),
        np.random.default_rng(0),
    )
    for cut in range(6, len(whole), 3):
        assert open_picture(encoded(image, file_format, exif=whole[:cut])).size in ((8, 4), (4, 8))
    for _ in range(200):
        odd = np.frombuffer(whole, dtype=np.uint8).copy()
        odd[random.integers(6, len(odd), 6)] = random.integers(0, 256, 6)
        assert open_picture(encoded(image, file_format, exif=odd.tobytes())).size in ((8, 4), (4, 8))


def test_a_picture_is_turned_only_once_and_stays_as_it_was_for_its_owner():
    opened = Image.open(io.BytesIO(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif(TURNED))))
    turned = to_rgb(opened)
    assert turned.size == (4, 8) == to_rgb(turned).size and opened.size == (8, 4)


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"notes\0\0" + zlib.compress(bytes(3_000_000))),  # more than PIL unpacks
        chunk(b"tEXt", b"notes\0text")[:-1] + b"!",  # a wrong checksum
        chunk(b"zTXt", b"notes\0\5text"),  # an unknown compression
        chunk(b"pHYs", b"!"),
        chunk(b"gAMA", b""),
        chunk(b"eXIf", b"nothing"),
    ],
)
def test_what_a_png_says_beside_its_picture_does_no_harm(image_processor, picture, metadata, tmp_path):
    data = encoded(picture)
    data = data[:33] + metadata + data[33:]  # after the header
    (tmp_path / "picture.png").write_bytes(data)
    for source in (data, tmp_path / "picture.png"):
        assert torch.equal(pixels_of(image_processor, source), pixels_of(image_processor, picture))
    with pytest.raises(ValueError, match=r"corrupt|truncated"):
        image_processor(data[: len(data) - 100])


# Sources


def test_all_sources_give_the_same_pixels(image_processor, picture, tmp_path):
    data, path = encoded(picture), tmp_path / "picture.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    expected = pixels_of(image_processor, picture)
    kept = [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, {"bytes": data, "path": "no/such.png"}]
    texts = (text, f"data:image/png;base64,{text}", base64.encodebytes(data).decode())
    for source in (path, str(path), data, *texts, *kept):
        assert torch.equal(pixels_of(image_processor, source), expected)
        assert torch.equal(pixels_of(image_processor, [[source], [picture]])[:1], expected)


def test_urls_are_fetched_only_where_allowed(image_processor, picture):
    data = encoded(picture)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/picture.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/picture.png"
        with pytest.raises(ValueError, match="URLs are not fetched"):
            image_processor(url)
        fetching = DPSImageProcessor(size={"height": SIZE, "width": SIZE}, fetch_urls=True)
        assert torch.equal(pixels_of(fetching, url), pixels_of(image_processor, picture))
        with pytest.raises(ValueError, match="404"):
            fetching(url + "x")
        server.shutdown()


# Arrays


def test_arrays_give_the_pixels_of_the_picture(image_processor, picture):
    expected = pixels_of(image_processor, picture)
    rows = np.asarray(picture)  # (height, width, channels)
    channels = np.ascontiguousarray(rows.transpose(2, 0, 1))
    for array in (rows, channels):
        kinds = [array, array.astype(np.float32) / 255, array.astype(np.float64), array.astype(np.int64)]
        kinds += [array.astype(np.uint16) * 257, array.astype(">u2") * 257]
        for kind in kinds:
            assert torch.equal(pixels_of(image_processor, kind), expected)
        tensor = torch.from_numpy(array.copy())
        for kind in (tensor, tensor / 255, (tensor / 255).requires_grad_(), tensor.bfloat16(), tensor.long()):
            assert torch.equal(pixels_of(image_processor, kind), expected)
    assert torch.equal(pixels_of(image_processor, np.stack([rows, rows])), torch.cat([expected, expected]))
    assert torch.equal(pixels_of(image_processor, torch.from_numpy(channels)[None]), expected)
    assert torch.equal(pixels_of(image_processor, [rows, picture, channels]), expected.expand(3, -1, -1, -1))


def test_grey_arrays_have_two_dimensions_or_one_channel(image_processor, picture):
    grey = picture.convert("L")
    expected, values = pixels_of(image_processor, grey), np.asarray(grey)
    for array in (values, values[None], values[..., None], torch.from_numpy(values.copy())):
        assert torch.equal(pixels_of(image_processor, array), expected)
        assert torch.equal(pixels_of(image_processor, [array]), expected)
    assert torch.equal(
        pixels_of(image_processor, values > 127),
        pixels_of(image_processor, grey.point(lambda value: 255 * (value > 127))),
    )


def test_fourth_channel_is_transparency(image_processor):
    assert colour_of(image_processor, np.zeros((5, 5, 4), dtype=np.uint8)) == [255, 255, 255]
    assert colour_of(image_processor, torch.zeros(4, 5, 5)) == [255, 255, 255]


def test_input_data_format_settles_ambiguity(image_processor):
    array = np.zeros((3, 8, 3), dtype=np.uint8)
    array[0] = 255
    first = image_processor(array, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    last = image_processor(array, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    assert first[0, 0].max() == 1 and first[0, 1].max() < 0
    assert last[0, 0, :8].max() == 1 and last[0, 1, :8].max() == 1


# Bad pictures


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), np.nan), "must lie in"),
        (np.full((4, 4, 3), np.inf), "must lie in"),
        (np.full((4, 4, 3), -0.1), "must lie in"),
        (np.full((4, 4, 3), 70000), "must lie in"),
        (np.zeros((0, 0, 3)), "must have pixels"),
        (np.zeros((4, 0, 3), dtype=np.uint8), "must have pixels"),
        (np.zeros((0, 4)), "must have pixels"),
        (torch.zeros(3, 0, 4), "must have pixels"),
        (np.full((4, 4, 3), "red"), "must be made of numbers"),
        (np.zeros((5, 5, 2)), "channel"),
        (np.zeros((7, 5, 6)), "channel"),
        (np.zeros(5), "flat list"),
        (np.zeros((1, 1, 1, 4, 4)), "flat list"),
    ],
)
def test_bad_arrays_are_refused(image_processor, array, message):
    with pytest.raises(ValueError, match=message):
        image_processor(array)


def test_fractions_that_must_not_be_rescaled_are_refused(image_processor):
    with pytest.raises(ValueError, match="Leave do_rescale=False out"):
        image_processor(np.zeros((4, 4, 3)), do_rescale=False)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(image_processor, file_format, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(values), file_format)
    for length in (0, 3, 20, len(data) // 2):
        with pytest.raises(ValueError, match=r"corrupt|unknown format|truncated"):
            image_processor(data[:length])
    path = tmp_path / "picture"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"corrupt|unknown format|truncated"):
        image_processor(path)
    if file_format != "WEBP":  # whose header alone PIL does not open
        with pytest.raises(ValueError, match=r"corrupt|truncated"):
            image_processor(Image.open(path))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_corrupt_files_raise_nothing_but_value_errors(image_processor, picture, file_format):
    data, random = encoded(picture, file_format), np.random.default_rng(0)
    for _ in range(100):
        corrupt = np.frombuffer(data, dtype=np.uint8).copy()
        corrupt[random.integers(0, len(corrupt), 4)] = random.integers(0, 256, 4)
        with contextlib.suppress(ValueError):
            pixels_of(image_processor, corrupt.tobytes())


def test_what_is_no_picture_is_refused(image_processor, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for source in (tmp_path / "notes.txt", b"hello", "data:image/png;base64,aGVsbG8="):
        with pytest.raises(ValueError, match="corrupt or of an unknown format"):
            image_processor(source)
    for source in ("data:image/png;base64,!", "data:image/png;base64,###", "data:,"):
        with pytest.raises(ValueError, match="corrupt or of an unknown format"):
            image_processor(source)
    for source in (
        "no/such/file.png",
        tmp_path,
        tmp_path / "none.png",
        "x" * 5000 + ".png",
        "null\0.png",
        "cats",
        "кот.png",
        "",
    ):
        with pytest.raises(ValueError, match="No picture at"):
            image_processor(source)
    for source in (None, 7, {"url": "x"}, {"bytes": None, "path": None}, [None]):
        with pytest.raises((TypeError, ValueError)):
            image_processor(source)


def test_huge_pictures_are_refused_before_their_pixels_are_decoded(image_processor):
    # The files promise these sizes and hold next to nothing, so that decoding would fail in another way.
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="100 megapixels at most"):
        open_picture(png(10_001, 10_000, 8, 0, bytes(10)))
    with pytest.raises(ValueError, match="too large"):
        open_picture(png(50_000, 50_000, 8, 0, bytes(10)))
    lazy = Image.open(io.BytesIO(png(8_000, 8_000, 8, 0, bytes(10))))
    lazy._size = (20_000, 20_000)
    with pytest.raises(ValueError, match="400 megapixels"):
        image_processor(lazy)


def test_empty_picture_is_refused():
    with pytest.raises(ValueError, match="must have pixels"):
        to_rgb(Image.new("RGB", (0, 5)))


# Saving


def test_settings_survive_saving(image_processor, tmp_path):
    image_processor.save_pretrained(tmp_path)
    loaded = DPSImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    assert loaded.size == {"height": SIZE, "width": SIZE} and loaded.min_size == 1
