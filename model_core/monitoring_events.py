"""Event files for TensorBoard, written with TensorBoard's own record format and messages: TensorFlow is not needed.

    with EventWriter(folder) as events:
        events.scalars({"reconstruction error": 0.04}, step)
        events.parameters(params, previous, step)
        events.images("filters", filters, step)

`tensorboard --logdir FOLDER` shows them.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from model_core.rbm import RBMParams

Array = np.ndarray
_NUM_BINS = 60


class EventWriter:
    """Appends to one event file of its own in `folder`; what is written is flushed at once, so it survives a crash.

    A run that is resumed makes a further file in the same folder; TensorBoard reads them as one run.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        self.path = folder / f"events.out.tfevents.{now // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{now}"
        self._records = RecordWriter(self.path.open("xb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point of each curve."""
        self._add([Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()], step)

    def histogram(self, tag: str, values: Array, step: int) -> None:
        """The distribution of all numbers of an array.

        Raises:
          ValueError: if a number is not finite.
        """
        self._add([Summary.Value(tag=tag, histo=histogram_message(values))], step)

    def parameters(self, params: RBMParams, previous: RBMParams | None, step: int) -> None:
        """Histograms of the weights and both biases and, given the parameters before, of their updates."""
        for name, values in params._asdict().items():
            self.histogram(f"parameters/{name}", values, step)
            if previous is not None:
                self.histogram(f"updates/{name}", values - getattr(previous, name), step)

    def image(self, tag: str, pixels: Array, step: int) -> None:
        """One picture.

        Args:
          tag: its name.
          pixels: uint8 [rows, columns] or [rows, columns, 3]; floats in 0..1 are taken as grey.
          step: the update it belongs to.
        """
        pixels = np.asarray(pixels)
        if pixels.dtype.kind == "f":
            pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        height, width = pixels.shape[:2]
        num_channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        message = Summary.Image(
            height=height, width=width, colorspace=num_channels, encoded_image_string=buffer.getvalue()
        )
        self._add([Summary.Value(tag=tag, image=message)], step)

    def images(self, tag: str, pictures: Array, step: int, *, num_columns: int | None = None) -> None:
        """Many pictures of one size as one: floats in 0..1 [pictures, rows, columns], such as chains; see `tile`."""
        self.image(tag, tile(pictures, num_columns=num_columns), step)

    def filters(self, params: RBMParams, image_shape: tuple[int, int], step: int, *, num_filters: int = 100) -> None:
        """The first columns of the weights as pictures on one grey scale: middle grey is 0, white the largest."""
        columns = params.weights.T[:num_filters].reshape(-1, *image_shape)
        scale = float(np.abs(columns).max()) or 1.0
        self.images("filters", 0.5 + 0.5 * columns / scale, step)

    def close(self) -> None:
        self._records.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, values: list[Any], step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


def histogram_message(values: Array) -> Any:
    """TensorBoard's histogram of an array: equal bins from the smallest to the largest number."""
    values = np.asarray(values, np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError("a histogram needs finite numbers; received NaN or infinity: the training has diverged.")
    counts, edges = np.histogram(values, bins=_NUM_BINS)
    message = HistogramProto(
        min=values.min(),
        max=values.max(),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
    )
    message.bucket_limit.extend(edges[1:].tolist())
    message.bucket.extend(counts.tolist())
    return message


def tile(pictures: Array, *, num_columns: int | None = None) -> Array:
    """Pictures [pictures, rows, columns] side by side in a near-square, with one-pixel lines of middle grey between."""
    num_pictures, height, width = pictures.shape
    num_columns = num_columns or int(np.ceil(np.sqrt(num_pictures)))
    num_rows = -(-num_pictures // num_columns)
    sheet = np.full((num_rows * (height + 1) - 1, num_columns * (width + 1) - 1), 0.5, np.float32)
    for index, picture in enumerate(pictures):
        top, left = (index // num_columns) * (height + 1), (index % num_columns) * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    return sheet
