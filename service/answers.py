"""Finished chains and arrays -> the bytes of an answer, in the format that was asked for. Plain functions of their
arguments: the same (model version, input, parameters, seed) gives the same bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic_core

from service.jobs import Frame
from service.pictures import render
from service.schemas import ChainParams

if TYPE_CHECKING:
    from service.registry import ServedModel


@dataclass(frozen=True, eq=False)
class Drawing:
    """What an answer about chains needs besides their frames."""

    params: ChainParams
    model: ServedModel
    seed: int
    start: np.ndarray  # float32 [chains, visible]: what the model saw
    steps: int = 0
    every: int = 0

    def summary(self) -> dict[str, Any]:
        """What every JSON answer says."""
        return {
            "model": self.model.name,
            "version": self.model.version,
            "seed": self.seed,
            "steps": self.steps,
            "temperature": self.params.temperature,
        }

    def images(self, rows: np.ndarray) -> np.ndarray:
        """[chains, visible] -> [chains, height, width]."""
        return rows.reshape(len(rows), *self.model.image_shape)

    def shown(self, frame: Frame) -> np.ndarray:
        """What a person sees of a frame: probabilities or states, [chains, height, width]."""
        return self.images(frame.visible_probs if self.params.output == "probabilities" else frame.visible)


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
    return {"image": _text(picture), "free_energy": _rounded(drawing.model.free_energy(frame.visible))}


def _picture(drawing: Drawing, frames: list[Frame], format_name: str) -> bytes:
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
        "free_energy": _rounded(drawing.model.free_energy(last.visible)),
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


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def png_text(image: np.ndarray, scale: int) -> str:
    """One image, [height, width], as a base64 PNG."""
    return _text(render([image[None]], format="png", view="final", scale=scale))


def json_bytes(document: Any) -> bytes:
    """Compact JSON; arrays become lists."""
    return pydantic_core.to_json(document, fallback=lambda value: value.tolist())


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def csv_bytes(header: str, *columns: Iterable[Any]) -> bytes:
    lines = [header, *(",".join(str(value) for value in row) for row in zip(*columns, strict=True)), ""]
    return "\n".join(lines).encode()
