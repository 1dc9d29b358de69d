"""What a person sees while training runs: a bar on a terminal, plain lines everywhere else. All of it on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class TrainingProgress:
    """Shows epochs, time left, images per second and the newest metrics.

        with TrainingProgress(num_updates, images_per_update=100) as progress:
            progress.advance(updates=50)
            progress.metrics(epoch, {"reconstruction error": 0.041, "gap": 0.3})

    Args:
      num_updates: how many updates the whole run has.
      images_per_update: training images in one of them.
      first_update: updates done before, in a run that is resumed.
      stream: where to write; stderr when None. A bar needs a terminal: elsewhere a line appears at each `metrics`
        and every 30 seconds, so that a log file stays readable.
    """

    def __init__(
        self, num_updates: int, *, images_per_update: int, first_update: int = 0, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._num_updates, self._images_per_update = num_updates, images_per_update
        self._first_update = self._update = first_update
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._stream.isatty():
            self._bar = _make_bar(Console(file=self._stream))
            self._task = self._bar.add_task("training", total=num_updates, completed=first_update, note="")
        self._note = ""

    def advance(self, *, updates: int) -> None:
        """So many updates more are done."""
        self._update += updates
        if self._bar is not None:
            self._bar.update(self._task, completed=self._update, note=f"{self._speed_text()}  {self._note}")
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def metrics(self, epoch: int, values: Mapping[str, float]) -> None:
        """The numbers at the end of an epoch."""
        self._note = f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.console.print(self._note, highlight=False)
            self._bar.update(self._task, note=f"{self._speed_text()}  {self._note}")
        else:
            self._print_line()

    def images_per_second(self) -> float:
        """Since the start of this run; 0 before anything was done."""
        seconds = time.monotonic() - self._started
        return (self._update - self._first_update) * self._images_per_update / seconds if seconds > 0 else 0.0

    def seconds_left(self) -> float:
        """At the speed so far; NaN before anything was done."""
        speed = self.images_per_second()
        return (self._num_updates - self._update) * self._images_per_update / speed if speed else math.nan

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _speed_text(self) -> str:
        return f"{self.images_per_second():,.0f} images/s"

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        left = self.seconds_left()
        time_left = "" if math.isnan(left) else f", {format_seconds(left)} left"
        parts = f"update {self._update}/{self._num_updates}, {self._speed_text()}{time_left}"
        print(f"{parts}; {self._note}" if self._note else parts, file=self._stream, flush=True)


def format_seconds(seconds: float) -> str:
    """3725 -> 1 h 02 min, 125 -> 2 min 05 s, 9 -> 9 s."""
    total = round(seconds)
    if total >= 3600:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 60} min {total % 60:02d} s" if total >= 60 else f"{total} s"


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=False,
    )
