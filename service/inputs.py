"""Uploads -> rows of pixels that a model can use; decoding runs in the intake's worker, one body at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from starlette.requests import Request

from service.arrays import to_rows
from service.errors import Problem
from service.images import ImageError, ModelImage, decode_image, mask_image, model_image, unmoved_image
from service.streaming import while_wanted
from service.uploads import Body

T = TypeVar("T")
InvertName = Literal["auto", "true", "false"]

if TYPE_CHECKING:
    from service.served_model import ServedModel


class Pixels(NamedTuple):
    """Images as the model sees them."""

    rows: np.ndarray  # float32 [n, visible] in 0..1
    inverted: list[bool]  # of each: the upload was dark ink on light paper

    def header(self) -> dict[str, str]:
        """RBM-Inverted, of a single image; an answer about several tells it in its JSON."""
        return {"RBM-Inverted": str(self.inverted[0]).lower()} if len(self.inverted) == 1 else {}


async def read_pixels(
    request: Request, model: ServedModel, invert: InvertName, deadline: float, *, many: bool
) -> Pixels:
    """The images of the body. Files are prepared as training images are; arrays are used as they are.

    Raises:
      Problem: of one file, saying which. DeadlinePassed, ClientDisconnect: between two files.
    """
    intake = request.app.state.intake
    with intake.holding() as held:
        body = await intake.read(request, held, many=many)
        shape = model.image_shape
        if body.array is not None:
            return await _decode(request, deadline, pixels_of_array, body.array, shape)
        # One by one: between two of them others have their turn.
        images = [
            await _decode(request, deadline, _file_image, body.files, number, shape, invert)
            for number in range(len(body.files))
        ]
        return pixels_of_images(images)


async def read_mask(
    request: Request, model: ServedModel, invert: InvertName, deadline: float
) -> tuple[Pixels, np.ndarray]:
    """Images, and which of their pixels are marked, bool [n, visible]."""
    intake = request.app.state.intake
    with intake.holding() as held:
        body = await intake.read(request, held, many=False, mask=True)
        return await _decode(request, deadline, _pixels_and_mask, body, model.image_shape, invert)


async def _decode(request: Request, deadline: float, function: Callable[..., T], *args: Any) -> T:
    """Runs it in the intake's worker while the client is there and the deadline has not passed."""
    return await while_wanted(request, request.app.state.intake.decode(function, *args), deadline)


def pixels_of(body: Body, image_shape: tuple[int, int], invert: InvertName) -> Pixels:
    """As `read_pixels`, at once."""
    if body.array is not None:
        return pixels_of_array(body.array, image_shape)
    return pixels_of_images([_file_image(body.files, number, image_shape, invert) for number in range(len(body.files))])


def pixels_of_array(array: np.ndarray, image_shape: tuple[int, int]) -> Pixels:
    rows = to_rows(array, image_shape)
    return Pixels(rows, [False] * len(rows))


def pixels_of_images(images: Sequence[ModelImage]) -> Pixels:
    return Pixels(np.stack([image.pixels.reshape(-1) for image in images]), [image.inverted for image in images])


def _file_image(files: Sequence[bytes], number: int, image_shape: tuple[int, int], invert: InvertName) -> ModelImage:
    try:
        return model_image(decode_image(files[number]), image_shape, invert)
    except ImageError as error:
        which = f"File {number + 1} of {len(files)}: " if len(files) > 1 else ""
        raise Problem(error.status, which + error.detail) from None


def _pixels_and_mask(body: Body, image_shape: tuple[int, int], invert: InvertName) -> tuple[Pixels, np.ndarray]:
    if body.mask_file is not None:
        image = unmoved_image(decode_image(body.files[0]), image_shape, invert)
        pixels = Pixels(image.pixels.reshape(1, -1), [image.inverted])
        mask = mask_image(_decoded_mask(body.mask_file), image_shape).reshape(1, -1)
    else:
        pixels = pixels_of(body, image_shape, invert)
        given = np.empty(0) if body.mask_array is None else body.mask_array
        one_mask = given.shape in ((pixels.rows.shape[1],), tuple(image_shape))
        mask = to_rows(given[None] if one_mask else given, image_shape, "mask") >= 0.5
    num_images = len(pixels.rows)
    if len(mask) not in (1, num_images):
        raise Problem(422, f"`mask` must be one mask, or one an image. Received {len(mask)} for {num_images} images.")
    return pixels, np.broadcast_to(mask, pixels.rows.shape)


def _decoded_mask(file: bytes) -> np.ndarray:
    try:
        return decode_image(file)
    except ImageError as error:
        raise Problem(error.status, f"The mask: {error.detail}") from None
