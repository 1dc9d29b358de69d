"""Uploads: every way to write down one drawing gives one model image; every bad file a clear refusal."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.images import ImageError, decode_image, mask_image, model_image, unmoved_image
from service.strokes import stroke_width
from tests.service.drawn import drawn_digit, photograph, to_bytes

INK = drawn_digit()


def seen(body: bytes, invert: str = "auto") -> np.ndarray:
    return model_image(decode_image(body), invert=invert).pixels


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    """What the model sees of the plain drawing: 8-bit grey PNG, black on white."""
    return seen(to_bytes(1 - INK))


def assert_same(pixels: np.ndarray, plain: np.ndarray, tolerance: float) -> None:
    __tracebackhide__ = True
    assert pixels.shape == plain.shape
    assert np.abs(pixels - plain).mean() < tolerance


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, size: tuple[int, int] = (28, 28), colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def test_result_is_a_training_like_digit(plain: np.ndarray) -> None:
    rows, columns = np.nonzero(plain > 0.02)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert min(np.ptp(rows), np.ptp(columns)) + 1 < 20  # the shape is kept, not stretched into a square
    mass = plain.sum()
    for axis in (0, 1):
        centre = (plain.sum(axis=1 - axis) * np.arange(28)).sum() / mass
        assert abs(centre - 14) <= 0.5 + 1e-6
    assert plain.dtype == np.float32 and plain.min() == 0 and plain.max() == 1


def test_a_training_like_image_passes_bit_for_bit(plain: np.ndarray) -> None:
    digit = np.rint(plain * 255).astype(np.uint8)
    result = model_image(decode_image(to_bytes(digit)))
    assert result.untouched and not result.inverted
    np.testing.assert_array_equal(result.pixels, digit / np.float32(255))


def test_real_training_images_pass_bit_for_bit(mnist_folder: Path) -> None:
    with gzip.open(mnist_folder / "t10k-images-idx3-ubyte.gz") as file:
        digits = np.frombuffer(file.read(16 + 300 * 784), np.uint8, offset=16).reshape(300, 28, 28)
    untouched = [model_image(decode_image(to_bytes(digit))) for digit in digits]
    assert np.mean([result.untouched for result in untouched]) > 0.98
    for digit, result in zip(digits, untouched, strict=True):
        if result.untouched:
            np.testing.assert_array_equal(result.pixels, digit / np.float32(255))


def test_inverted_equals_plain(plain: np.ndarray) -> None:
    dark, light = model_image(decode_image(to_bytes(1 - INK))), model_image(decode_image(to_bytes(INK)))
    assert dark.inverted and not light.inverted
    assert_same(light.pixels, dark.pixels, 0.002)


def test_invert_overrules_the_page(plain: np.ndarray) -> None:
    assert_same(seen(to_bytes(1 - INK), invert="true"), plain, 1e-6)
    assert_same(seen(to_bytes(INK), invert="false"), plain, 0.002)
    assert np.abs(seen(to_bytes(1 - INK), invert="false") - plain).mean() > 0.05


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same(plain: np.ndarray, orientation: int) -> None:
    undone = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(np.rint((1 - INK) * 255).astype(np.uint8))
    stored = stored if undone is None else stored.transpose(Image.Transpose(undone))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_same(seen(to_bytes(stored, "JPEG", quality=95, exif=exif.tobytes())), plain, 0.01)


@pytest.mark.parametrize("tone", [0, 255, 40])
def test_ink_in_the_alpha_channel(plain: np.ndarray, tone: int) -> None:
    canvas = np.full((*INK.shape, 4), tone, np.uint8)
    canvas[..., 3] = np.rint(INK * 255)
    assert_same(seen(to_bytes(canvas)), plain, 0.002)


def test_opaque_alpha_and_sticker(plain: np.ndarray) -> None:
    page = np.repeat(np.rint((1 - INK) * 255).astype(np.uint8)[..., None], 4, axis=2)
    page[..., 3] = 255
    assert_same(seen(to_bytes(page)), plain, 1e-6)
    page[:20, :, 3] = page[:, :20, 3] = 0  # white paper whose edge was cut away
    assert_same(seen(to_bytes(page)), plain, 0.002)


def test_sixteen_bits_equal_eight() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (64, 1))
    deep, flat = decode_image(to_bytes(ramp)), decode_image(to_bytes((ramp >> 8).astype(np.uint8)))
    assert np.abs(deep - flat).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("mode", ["RGB", "P", "1", "LA", "RGBA"])
def test_modes_equal_plain(plain: np.ndarray, mode: str) -> None:
    page = Image.fromarray(np.rint((1 - INK) * 255).astype(np.uint8)).convert(mode, dither=Image.Dither.NONE)
    assert_same(seen(to_bytes(page)), plain, 0.02 if mode == "1" else 0.002)


@pytest.mark.parametrize(
    ("format", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB")]
)
def test_formats_equal_plain(plain: np.ndarray, format: str, mode: str) -> None:
    page = Image.fromarray(np.rint((1 - INK) * 255).astype(np.uint8)).convert(mode)
    assert_same(seen(to_bytes(page, format)), plain, 0.02)


@pytest.mark.parametrize(
    ("ink", "paper"), [((250, 230, 40), (255, 255, 255)), ((20, 30, 160), (0, 0, 0)), ((200, 30, 40), (235, 235, 225))]
)
def test_coloured_ink(plain: np.ndarray, ink: tuple[int, ...], paper: tuple[int, ...]) -> None:
    page = INK[..., None] * np.array(ink) + (1 - INK[..., None]) * np.array(paper)
    assert_same(seen(to_bytes(page.astype(np.uint8))), plain, 0.01)


def test_photograph_with_shadow_equals_plain(plain: np.ndarray) -> None:
    assert_same(seen(to_bytes(photograph(INK), "JPEG", quality=75)), plain, 0.03)


def test_place_and_size_on_the_page_do_not_matter(plain: np.ndarray) -> None:
    page = np.zeros((900, 1200), np.float32)
    page[30:310, 880:1160] = INK
    page[700, 300] = 1  # a speck
    assert_same(seen(to_bytes(1 - page)), plain, 0.01)


@pytest.mark.parametrize("width", [4, 60])
def test_stroke_width_comes_near_the_training_images(width: int) -> None:
    assert 1.6 < stroke_width(seen(to_bytes(1 - drawn_digit(width=width)))) < 4.6


def test_phone_photograph_within_the_byte_limit(plain: np.ndarray) -> None:
    body = to_bytes(Image.fromarray(np.uint8(photograph(INK) * 255)).resize((3000, 4000)), "JPEG", quality=50)
    assert len(body) < 1_000_000
    assert max(decode_image(body).shape) <= 1024
    assert seen(body).sum() > 40


def test_other_model_shapes() -> None:
    result = model_image(decode_image(to_bytes(1 - INK)), (14, 21))
    assert result.pixels.shape == (14, 21)
    assert np.ptp(np.nonzero(result.pixels > 0.02)[0]) + 1 == 10


def test_under_a_mask_ink_and_paper_are_found_and_nothing_moves() -> None:
    page = np.zeros((280, 280), np.float32)
    page[:180, 90:270] = INK[50:230, 40:220]  # off the centre, and not fitted
    expected = np.asarray(Image.fromarray(page).resize((28, 28), Image.Resampling.BOX))
    for body in (to_bytes(page), to_bytes(1 - page), to_bytes(photograph(page), "JPEG", quality=75)):
        result = unmoved_image(decode_image(body))
        assert not result.untouched
        assert_same(result.pixels, expected, 0.04)
    assert result.inverted
    assert not unmoved_image(decode_image(to_bytes(np.full((280, 280), 0.9)))).pixels.any()  # nothing is drawn yet
    thin, thick = (unmoved_image(decode_image(to_bytes(drawn_digit(width=width)))).pixels for width in (4, 60))
    assert 1.6 < stroke_width(thin) < stroke_width(thick) < 4.6


def test_mask_keeps_place() -> None:
    mask = np.zeros((280, 280), np.uint8)
    mask[:140] = 255
    marked = mask_image(decode_image(to_bytes(mask)))
    assert marked.dtype == bool and marked[:14].all() and not marked[14:].any()


REFUSED = {
    "empty": (b"", 422),
    "text named .png": (b"hello, I am not a picture\n" * 9, 415),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    "tiff": (to_bytes(1 - INK, "TIFF"), 415),
    "lab": (to_bytes(Image.new("LAB", (30, 30)), "TIFF"), 415),
    "1x1": (to_bytes(np.zeros((1, 1), np.uint8)), 422),
    "1xN": (to_bytes(np.zeros((1, 300), np.uint8)), 422),
    "blank white": (to_bytes(np.full((200, 200), 255, np.uint8)), 422),
    "blank transparent": (to_bytes(np.zeros((200, 200, 4), np.uint8)), 422),
    "noise only": (to_bytes(np.random.default_rng(0).integers(120, 136, (300, 300)).astype(np.uint8)), 422),
    "20,000 x 20,000 declared": (png_with(chunk(b"IDAT", zlib.compress(b"")), size=(20_000, 20_000)), 413),
    "64,250 x 64,250 declared": (png_with(chunk(b"IDAT", zlib.compress(b"")), size=(64_250, 64_250)), 413),
    "5,000 x 3 pixels": (to_bytes(np.zeros((3, 5000), np.uint8)), 413),
    "bomb of 16 million pixels": (png_with(chunk(b"IDAT", zlib.compress(bytes(4096 * 4097))), size=(4096, 4096)), 413),
    "truncated JPEG": (to_bytes(photograph(INK), "JPEG")[:3000], 422),
    "truncated PNG": (to_bytes(1 - INK)[:900], 422),
    "magic only": (b"\xff\xd8\xff", 422),
    "zTXt bomb": (png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000)))), 422),
    "JPEG of many scans": (to_bytes(photograph(INK), "JPEG") + b"\xff\xda\0\x08" * 500, 422),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_with_a_sentence(name: str) -> None:
    body, status = REFUSED[name]
    with pytest.raises(ImageError) as refusal:
        model_image(decode_image(body))
    assert refusal.value.status == status
    assert refusal.value.detail[0].isupper() and refusal.value.detail.endswith(".") and "0x" not in refusal.value.detail


def test_profile_bomb_is_read_or_refused() -> None:
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(90_000_000)))
    body = png_with(profile, chunk(b"IDAT", zlib.compress(bytes(29 * 28))))
    with pytest.raises(ImageError) as refusal:
        model_image(decode_image(body))
    assert refusal.value.status == 422


def test_only_the_first_of_many_frames_is_read(plain: np.ndarray) -> None:
    first = Image.fromarray(np.rint((1 - INK) * 255).astype(np.uint8))
    others = [Image.new("L", first.size, shade) for shade in (0, 255) * 40]
    body = to_bytes(first, "GIF", save_all=True, append_images=others)
    assert_same(seen(body), plain, 0.005)


@pytest.mark.parametrize("tail", [b"PK\x03\x04 a zip", b"<script>alert(1)</script>", b"%PDF-1.7"])
def test_polyglots_are_pictures_and_nothing_else(plain: np.ndarray, tail: bytes) -> None:
    assert_same(seen(to_bytes(1 - INK) + tail), plain, 1e-6)


def test_damaged_exif_says_nothing(plain: np.ndarray) -> None:
    page = Image.fromarray(np.rint((1 - INK) * 255).astype(np.uint8))
    assert_same(seen(to_bytes(page, "JPEG", quality=95, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")), plain, 0.01)


def test_handwriting_of_other_people_stays_itself(shared_data: Path) -> None:
    """A photograph of a digit is nearer to that digit than to all others, those of its own class included."""
    path = shared_data / "hwd1000.npz"
    if not path.exists():
        pytest.skip("hwd1000.npz is not at hand")
    digits = np.load(path)["x"][5::50]
    direct = np.stack([seen(to_bytes(digit)) for digit in digits])
    for number, digit in enumerate(digits):
        page = Image.fromarray(255 - digit).resize((420, 420), Image.Resampling.BICUBIC)
        photo = seen(to_bytes(photograph(np.asarray(page, np.float32) / 255, number), "JPEG", quality=75))
        assert int(np.argmin(np.abs(direct - photo).mean(axis=(1, 2)))) == number


def test_decoded_page_is_float_and_small() -> None:
    page = decode_image(to_bytes(np.zeros((1999, 1999), np.uint8)))
    assert page.dtype == np.float32 and max(page.shape) <= 1024
