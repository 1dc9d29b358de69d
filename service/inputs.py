"""Uploads -> rows of pixels that a model can use; decoding runs in the intake's worker, one body at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from starlette.requests import Request

from service.errors import Problem
from service.images import ImageError, decode_image, mask_image, model_image
from service.uploads import Body, to_rows

InvertName = Literal["auto", "true", "false"]

if TYPE_CHECKING:
    from service.registry import ServedModel


async def read_pixels(request: Request, model: ServedModel, invert: InvertName, *, many: bool) -> np.ndarray:
    """The images of the body: float32 [n, visible] in 0..1."""
    intake = request.app.state.intake
    body = await intake.read(request, many=many)
    return await intake.decode(_pixels, body, model.image_shape, invert)


async def read_mask(request: Request, model: ServedModel, invert: InvertName) -> tuple[np.ndarray, np.ndarray]:
    """Images, float32 [n, visible], and which of their pixels are marked, bool [n, visible]."""
    intake = request.app.state.intake
    body = await intake.read(request, many=False, mask=True)
    return await intake.decode(_pixels_and_mask, body, model.image_shape, invert)


def _pixels(body: Body, image_shape: tuple[int, int], invert: InvertName) -> np.ndarray:
    if body.array is not None:
        return to_rows(body.array, image_shape)
    return np.stack([_file_pixels(body.files, number, image_shape, invert) for number in range(len(body.files))])


def _file_pixels(files: Sequence[bytes], number: int, image_shape: tuple[int, int], invert: InvertName) -> np.ndarray:
    try:
        return model_image(decode_image(files[number]), image_shape, invert).pixels.reshape(-1)
    except ImageError as error:
        which = f"File {number + 1} of {len(files)}: " if len(files) > 1 else ""
        raise Problem(error.status, which + error.detail) from None


def _pixels_and_mask(body: Body, image_shape: tuple[int, int], invert: InvertName) -> tuple[np.ndarray, np.ndarray]:
    if body.mask_file is not None:
        pixels = _unmoved(decode_image(body.files[0]), image_shape, invert).reshape(1, -1)
        mask = mask_image(decode_image(body.mask_file), image_shape).reshape(1, -1)
    else:
        pixels = _pixels(body, image_shape, invert)
        given = np.empty(0) if body.mask_array is None else body.mask_array
        one_mask = given.shape in ((pixels.shape[1],), tuple(image_shape))
        mask = to_rows(given[None] if one_mask else given, image_shape, "mask") >= 0.5
    if len(mask) not in (1, len(pixels)):
        raise Problem(422, f"`mask` must be one mask, or one an image. Received {len(mask)} for {len(pixels)} images.")
    return pixels, np.broadcast_to(mask, pixels.shape)


def _unmoved(decoded: np.ndarray, image_shape: tuple[int, int], invert: InvertName) -> np.ndarray:
    """The page shrunk to the model's size and no more: cropped and centred, it would not lie under its mask."""
    border = np.concatenate([decoded[0], decoded[-1], decoded[:, 0], decoded[:, -1]])
    inverted = invert == "true" or (invert == "auto" and float(np.median(border)) > 0.5)
    page = Image.fromarray(1.0 - decoded if inverted else decoded)
    height, width = image_shape
    return np.clip(np.asarray(page.resize((width, height), Image.Resampling.BOX), np.float32), 0.0, 1.0)
