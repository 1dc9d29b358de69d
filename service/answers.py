"""Finished chains and arrays -> the bytes of an answer, in the format that was asked for. Plain functions of their
arguments: the same (model version, input, parameters, seed) gives the same bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic_core

from service.errors import bad_parameter
from service.jobs import ChainJob, Frame
from service.pictures import picture_pixels, picture_size, render
from service.schemas import ChainParams

if TYPE_CHECKING:
    from service.served_model import ServedModel

MAX_PICTURE_PIXELS = 32_000_000  # about a second of encoding
MAX_WEBP_PIXELS = 4_000_000  # as MAX_PICTURE_PIXELS, for its slower compression
MAX_STREAM_PIXELS = 8_000_000  # of each frame of a stream
MAX_SIDES = {"png": 65_535, "apng": 65_535, "gif": 65_535, "webp": 16_383, "sse": 65_535}  # GIF's and WebP's: their own
MAX_STRIP_SIDE = 16_383
MAX_TEXT_NUMBERS = 8_000_000  # about 100 MB of JSON
BLOCK_ROWS = 16  # some 3 ms of text


@dataclass(frozen=True, eq=False)
class Drawing:
    """What an answer about chains needs besides their frames."""

    params: ChainParams
    model: ServedModel
    seed: int
    start: np.ndarray  # numbers in 0..1, [chains, visible]: what the model saw
    steps: int = 0
    every: int = 0
    inverted: list[bool] | None = None  # of each upload; None where nothing was uploaded
    kept: np.ndarray | None = None  # bool [chains, visible]: pixels of `start` that the chains do not change

    def summary(self) -> dict[str, Any]:
        """What every JSON answer says."""
        facts = {
            "model": self.model.name,
            "version": self.model.version,
            "seed": self.seed,
            "steps": self.steps,
            "temperature": self.params.temperature,
        }
        return facts if self.inverted is None else facts | {"inverted": self.inverted}

    def images(self, rows: np.ndarray) -> np.ndarray:
        """[chains, visible] -> [chains, height, width]."""
        return rows.reshape(len(rows), *self.model.image_shape)

    def shown(self, frame: Frame) -> np.ndarray:
        """What a person sees of a frame: probabilities or states, [chains, height, width].

        A grey pixel that is kept says how probable a 1 was when it was drawn; so it is shown as it came.
        """
        if self.params.output == "samples":
            return self.images(frame.visible)
        probs = frame.visible_probs
        return self.images(probs if self.kept is None else np.where(self.kept, self.start, probs))


def encode_answer(drawing: Drawing, frames: list[Frame], format_name: str) -> bytes:
    """The whole answer of `/dream`, `/sample` and `/inpaint`."""
    if format_name == "json":
        return json_bytes(_document(drawing, frames))
    if format_name == "npy":
        shown = [drawing.shown(frame) for frame in frames]
        return npy_bytes(np.stack(shown) if drawing.every else shown[-1])
    if format_name == "csv":
        return _energies_csv(drawing, frames)
    return _picture(drawing, frames, format_name)


def encode_frame(drawing: Drawing, frame: Frame) -> dict[str, Any]:
    """The data of one event of a stream: a PNG, and the free energy of each chain."""
    picture = _picture(drawing, [frame], "png")
    return {"image": base64_text(picture), "free_energy": drawing.model.free_energy(frame.visible).tolist()}


def check_picture(drawing: Drawing, job: ChainJob, format_name: str) -> int:
    """Refuses what would take seconds to paint, before any work is done.

    Returns:
      The pixels that will be painted; 0 if it is no picture.

    Raises:
      Problem: 422, saying what to ask for less of.
    """
    params, shape = drawing.params, drawing.model.image_shape
    num_frames, view, scale = job.num_frames, params.view, params.scale
    most = MAX_PICTURE_PIXELS
    if format_name == "json":
        painted = num_frames * job.num_chains * math.prod(shape) * scale**2
    elif format_name in MAX_SIDES:
        if format_name == "sse":  # a picture a frame
            num_frames, format_name, most = 1, "png", MAX_STREAM_PIXELS
        most = MAX_WEBP_PIXELS if format_name == "webp" else most
        painted = picture_pixels(num_frames, job.num_chains, shape, view=view, scale=scale, format=format_name)
        check_sides(picture_size(num_frames, job.num_chains, shape, view=view, scale=scale), view, format_name)
    else:
        return 0
    _check_painted(painted, most, "a larger `every`")
    return painted


def check_sides(size: tuple[int, int], view: str, format_name: str) -> None:
    """Raises Problem, 422, if a picture has a side that its format cannot have, or that nobody would look at."""
    longest, most = max(size), MAX_STRIP_SIDE if view == "strip" else MAX_SIDES[format_name]
    if longest > most:
        name, change = ("every", "a larger `every`, or a smaller") if view == "strip" else ("scale", "a smaller")
        raise bad_parameter(name, f"a side of {longest:,} pixels, the limit is {most:,}. Take {change} `scale` or `n`.")


def check_filters(image_shape: tuple[int, int], num_units: int, scale: int, format_name: str) -> None:
    """Refuses what would take seconds to paint; raises Problem, 422."""
    if format_name == "npy":
        return
    size = picture_size(1, num_units, image_shape, scale=scale)
    painted, most = math.prod(size), MAX_WEBP_PIXELS if format_name == "webp" else MAX_PICTURE_PIXELS
    _check_painted(painted, most, "for format=npy")
    if format_name != "json":
        check_sides(size, "final", format_name)


def _check_painted(painted: int, most: int, otherwise: str) -> None:
    if painted > most:
        raise bad_parameter("scale", f"{painted:,} pixels in all, the limit is {most:,}. Ask for a smaller `scale` or "
                                     f"`n`, or {otherwise}.")  # fmt: skip


def _picture(drawing: Drawing, frames: list[Frame], format_name: Any) -> bytes:
    params = drawing.params
    return render(
        [drawing.shown(frame) for frame in frames],
        format=format_name,
        view=params.view,
        scale=params.scale,
        inputs=drawing.images(drawing.start),
    )


def _document(drawing: Drawing, frames: list[Frame]) -> dict[str, Any]:
    last = frames[-1]
    shown = drawing.shown(last)
    document = drawing.summary() | {
        "output": drawing.params.output,
        "images": [png_text(image, drawing.params.scale) for image in shown],
        "inputs": [png_text(image, drawing.params.scale) for image in drawing.images(drawing.start)],
        "free_energy": drawing.model.free_energy(last.visible),
    }
    if drawing.params.pixels:
        document["pixels"] = np.round(shown.reshape(len(shown), -1).astype(np.float64), 6)
    if drawing.every:
        document["frames"] = [
            {"step": frame.step, "images": [png_text(image, drawing.params.scale) for image in drawing.shown(frame)]}
            for frame in frames
        ]
    return document


def _energies_csv(drawing: Drawing, frames: list[Frame]) -> bytes:
    lines = ["step,chain,free_energy"]
    for frame in frames:
        energies = drawing.model.free_energy(frame.visible)
        lines += [f"{frame.step},{chain},{energy:.6f}" for chain, energy in enumerate(energies)]
    return "\n".join([*lines, ""]).encode()


def base64_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def png_text(image: np.ndarray, scale: int) -> str:
    """One image, [height, width], as a base64 PNG."""
    return base64_text(render([image[None]], format="png", view="final", scale=scale))


def json_bytes(document: Any) -> bytes:
    """Compact JSON; arrays become lists, and what is no number null."""
    return pydantic_core.to_json(document, fallback=lambda value: value.tolist(), inf_nan_mode="null")


def json_table(document: dict[str, Any], name: str, rows: np.ndarray) -> list[bytes | memoryview]:
    """The document with `rows` as its last member, in blocks: other threads run in between, and none is copied."""
    parts: list[bytes | memoryview] = [b'%b,"%b":[' % (json_bytes(document)[:-1], name.encode())]
    for start in range(0, len(rows), BLOCK_ROWS):
        parts.append((b"," if start else b"") + json_bytes(rows[start : start + BLOCK_ROWS])[1:-1])
    return [*parts, b"]}"]


def csv_table(rows: np.ndarray, name: str, number_format: str) -> list[bytes | memoryview]:
    """A column a unit, a line a row, in blocks."""
    parts: list[bytes | memoryview] = [",".join(f"{name}_{column}" for column in range(rows.shape[1])).encode() + b"\n"]
    for start in range(0, len(rows), BLOCK_ROWS):
        lines = io.BytesIO()
        np.savetxt(lines, rows[start : start + BLOCK_ROWS], fmt=number_format, delimiter=",")
        parts.append(lines.getvalue())
    return parts


def check_table(num_rows: int, num_columns: int, format_name: str) -> None:
    """Raises Problem, 422, if a table would take seconds and gigabytes to write as text."""
    if format_name != "npy" and num_rows * num_columns > MAX_TEXT_NUMBERS:
        most = MAX_TEXT_NUMBERS // num_columns
        raise bad_parameter("format", f"{num_rows:,} images are too many for {format_name}, at most {most:,}. "
                                      "Take format=npy, or send fewer at a time.")  # fmt: skip


def npy_bytes(array: np.ndarray) -> bytes:
    return b"".join(npy_pieces(array))


def npy_pieces(array: np.ndarray) -> list[bytes | memoryview]:
    """Header and numbers of an NPY file; the numbers are not copied."""
    stream, array = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    return [stream.getvalue(), array.data.cast("B") if array.size else b""]


def csv_bytes(header: str, *columns: Iterable[Any]) -> bytes:
    lines = [header, *(",".join(str(value) for value in row) for row in zip(*columns, strict=True)), ""]
    return "\n".join(lines).encode()
