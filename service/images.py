"""Uploads -> pixels. A file is judged by its content, its size is known before it is decoded, and what comes out is
what the model was trained on: white ink on black, upright, centred."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from service.strokes import even_drawing, fit_drawing, looks_like_training_digit

MAX_PIXELS = 4_000_000
MAX_SIDE = 4096
# A JPEG can be decoded at a fraction of its size without ever holding all of it, so photographs of phones fit in.
MAX_JPEG_PIXELS = 50_000_000
MAX_JPEG_SIDE = 16_384
# A JPEG of several scans, such as a progressive one, is held whole (up to 6 bytes a pixel), and each of its scans costs
# a pass over all of it.
MAX_PROGRESSIVE_PIXELS = 16_000_000
MAX_JPEG_SCANS = 64
# One pass of libjpeg-turbo over a block with no data in it takes about 15 ns; this keeps all passes under 0.5 s.
MAX_SCANNED_PIXELS = 200_000_000
WORKING_SIDE = 1024  # pixels; larger pages are shrunk before anything else is done with them
JPEG_SIDE = 1000  # photographs are decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that leaves both sides this long
ACCEPTED = "PNG, JPEG, WEBP, GIF or BMP"
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B"}
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"} | _DEEP_MODES


class ImageError(ValueError):
    """An upload that cannot be used. `status` is for HTTP (413, 415 or 422), `detail` tells a person what to do."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class ModelImage(NamedTuple):
    """What the model sees of an upload."""

    pixels: np.ndarray  # float32 [height, width] of the model, 0..1, white ink on black
    inverted: bool  # the upload was dark ink on light paper
    untouched: bool  # it was a training-like image already and is passed on bit for bit


def decode_image(body: bytes) -> np.ndarray:
    """The first frame of an image file as grey, float32 [height, width] in 0..1, upright and without transparency.

    Pages longer than `WORKING_SIDE` come out shrunk by a whole factor. Metadata is dropped.

    Raises:
      ImageError: 413 too many pixels, 415 not an image format read here, 422 empty, damaged or of an unknown kind.
    """
    if not body:
        raise ImageError(422, f"The image is empty. Send a {ACCEPTED} file.")
    format_name = _sniffed_format(body)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of damaged metadata, which is not used
            return _decoded(body, format_name)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels("The image", MAX_PIXELS) from None
    except Exception as error:  # Pillow's parsers raise a dozen kinds on hostile bytes; none of them is our failure
        what = str(error).partition("<_io.")[0].strip()[:120] or type(error).__name__
        detail = f"The {format_name} file cannot be decoded ({what}). Save it again and send the whole file."
        raise ImageError(422, detail) from None


def model_image(decoded: np.ndarray, shape: tuple[int, int] = (28, 28), invert: str | bool = "auto") -> ModelImage:
    """A decoded page -> the digit on it as the training images show theirs: see `strokes.fit_drawing`.

    Args:
      decoded: what `decode_image` returned.
      shape: (height, width) of the model's images.
      invert: "true": dark ink on light; "false": light ink on dark; "auto" finds out from the page.

    Raises:
      ImageError: 422, if nothing is drawn on the page.
    """
    dark_ink = {"auto": None, "true": True, "false": False}[str(invert).lower()]
    if not dark_ink and looks_like_training_digit(decoded, shape):
        return ModelImage(np.array(decoded, np.float32), inverted=False, untouched=True)
    found = fit_drawing(decoded, shape, dark_ink)
    if found is None:
        raise ImageError(422, "No drawing found. Send one digit with clear strokes on a plain background.")
    return ModelImage(found.pixels, inverted=found.dark_ink, untouched=False)


def unmoved_image(decoded: np.ndarray, shape: tuple[int, int] = (28, 28), invert: str | bool = "auto") -> ModelImage:
    """As `model_image`, but everything stays where it is on the page, so that a mask of the page fits."""
    dark_ink = {"auto": None, "true": True, "false": False}[str(invert).lower()]
    if not dark_ink and looks_like_training_digit(decoded, shape):
        return ModelImage(np.array(decoded, np.float32), inverted=False, untouched=True)
    found = even_drawing(decoded, shape, dark_ink)
    return ModelImage(found.pixels, inverted=found.dark_ink, untouched=False)


def mask_image(decoded: np.ndarray, shape: tuple[int, int] = (28, 28)) -> np.ndarray:
    """Which model pixels a decoded black-and-white mask marks (white: True), bool [height, width] of the model."""
    height, width = shape
    return np.asarray(Image.fromarray(decoded).resize((width, height), Image.Resampling.BOX)) >= 0.5


def _sniffed_format(body: bytes) -> str:
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "WEBP"
    magic = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP"}
    for start, format_name in magic.items():
        if body.startswith(start):
            return format_name
    raise ImageError(415, f"This is not an image format read here, whatever its name says. Send {ACCEPTED}.")


def _decoded(body: bytes, format_name: str) -> np.ndarray:
    # Without `formats` every parser of Pillow would be open to strangers, Ghostscript's included.
    with Image.open(io.BytesIO(body), formats=(format_name,)) as image:
        if format_name == "JPEG":
            _check_jpeg(image, body)
            image.draft(None, (JPEG_SIDE, JPEG_SIDE))
        _check_size(image.size, MAX_PIXELS, MAX_SIDE)
        image.load()
        _check_size(image.size, MAX_PIXELS, MAX_SIDE)  # a GIF frame may be larger than its screen
        page = _without_palette(image)
        factor = -(-max(page.size) // WORKING_SIDE)
        page = page.reduce(factor) if factor > 1 else page
        page.info.pop("transparency", None)
        return _grey(_upright(page, image))


def _check_jpeg(image: Image.Image, body: bytes) -> None:
    _check_size(image.size, MAX_JPEG_PIXELS, MAX_JPEG_SIDE)
    num_pixels = image.width * image.height
    num_scans = body.count(b"\xff\xda")  # cannot occur inside a scan: there 255 is followed by 0
    if num_scans > MAX_JPEG_SCANS or (num_scans > 12 and num_scans * num_pixels > MAX_SCANNED_PIXELS):
        raise ImageError(422, f"The JPEG has {num_scans} scans, too many. Save it again as a plain JPEG.")
    is_held_whole = image.info.get("progressive") or _layers_of_first_scan(body) < len(image.getbands())
    if is_held_whole and num_pixels > MAX_PROGRESSIVE_PIXELS:
        subject = f"The JPEG of several scans is {image.width} x {image.height} pixels; it"
        raise _too_many_pixels(subject, MAX_PROGRESSIVE_PIXELS, MAX_JPEG_SIDE)


def _layers_of_first_scan(body: bytes) -> int:
    """How many colour components the first scan holds; 0 if that cannot be told. With fewer than all of them, libjpeg
    keeps the whole image, as it does of a progressive one."""
    place = 2
    while place + 5 <= len(body) and body[place] == 0xFF:
        marker = body[place + 1]
        if marker == 0xDA:
            return body[place + 4]
        if marker == 0xFF:  # a filler
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without a length
            place += 2
        else:
            place += 2 + int.from_bytes(body[place + 2 : place + 4], "big")
    return 0


def _check_size(size: tuple[int, int], max_pixels: int, max_side: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > max_side:
        raise _too_many_pixels(f"The image is {width} x {height} pixels; it", max_pixels, max_side)


def _too_many_pixels(subject: str, max_pixels: int, max_side: int = MAX_SIDE) -> ImageError:
    limit = f"at most {max_pixels / 1e6:.0f} million pixels and {max_side} a side"
    return ImageError(413, f"{subject} may have {limit}. Make it smaller, for instance 1024 pixels wide.")


def _without_palette(image: Image.Image) -> Image.Image:
    """The loaded image as L, F (0..255), RGB or RGBA: kinds that can be shrunk by averaging."""
    if image.mode not in _MODES:
        raise ImageError(422, f"The image's colours ({image.mode}) are not read here. Save it as RGB or grey.")
    if image.mode in _DEEP_MODES:
        deep = np.asarray(image, np.float32)  # Pillow's own conversion would cut everything above 255
        low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (float(deep.min()), float(deep.max()))
        return Image.fromarray((deep - low) * np.float32(255 / max(high - low, 1e-6)))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _upright(page: Image.Image, image: Image.Image) -> Image.Image:
    """`page` turned as the EXIF orientation of `image` says; damaged EXIF says nothing."""
    try:
        orientation = int(image.getexif().get(0x0112, 1))
    except Exception:  # as in `decode_image`; a picture that can be seen is worth more than its metadata
        return page
    tag = Image.Exif()
    tag[0x0112] = orientation if 1 <= orientation <= 8 else 1
    page.info["exif"] = tag.tobytes()
    return ImageOps.exif_transpose(page)


def _grey(page: Image.Image) -> np.ndarray:
    """L, F, RGB or RGBA -> float32 [height, width] in 0..1."""
    values = np.asarray(page, np.float32) / np.float32(255)
    if values.ndim == 2:
        return values
    if values.shape[2] == 3:
        return _strongest_channel(values)
    opaque = values[:, :, 3]
    if opaque.min() == 1.0:
        return _strongest_channel(values[:, :, :3])
    colours = values[:, :, :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    return opaque * colours + (1 - opaque) * _background_behind(colours, opaque)


def _background_behind(tone: np.ndarray, opaque: np.ndarray) -> np.float32:
    """The grey to put behind a transparent picture so that its drawing shows: the paper's own where most of it is
    opaque, else black or white, whichever is far from the ink (a canvas holds only ink)."""
    if opaque.mean() > 0.5:
        return np.float32(np.median(tone[opaque > 0.5]))
    mean_tone = float((tone * opaque).sum() / max(float(opaque.sum()), 1e-6))
    return np.float32(1.0 if mean_tone < 0.5 else 0.0)


def _strongest_channel(colours: np.ndarray) -> np.ndarray:
    """Luminance; or one of red, green and blue where the ink shows far better in it (yellow, blue)."""
    luminance = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    step = max(1, max(luminance.shape) // 256)
    layers = [luminance, *np.moveaxis(colours, 2, 0)]
    spreads = [float(np.abs(layer[::step, ::step] - np.median(layer[::step, ::step])).max()) for layer in layers]
    best = int(np.argmax(spreads))
    return np.ascontiguousarray(layers[best] if spreads[best] > 1.6 * spreads[0] else luminance)
