"""A client's end of an accepted job: frames come out in order, then the end, exactly once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator

from service.jobs import ChainJob, Frame

HELD_FRAMES = 32  # what a slow reader of a stream may have waiting, a default stream whole; older ones give way


class Ticket:
    """Made by `Scheduler.submit`. All of it is the event loop's: the scheduler leaves frames, a client reads them."""

    def __init__(self, job: ChainJob, *, num_held: int | None, submitted_at: float, clock: Callable[[], float]) -> None:
        self.job = job
        self.num_held = num_held  # frames that may wait for the reader; None: all of them
        self.compute_seconds = 0.0  # this job's share of the engine's time so far
        self.ended = False
        self.on_gone: Callable[[], None] | None = None  # called when nobody holds the ticket any more
        self._errors: list[Exception] = []  # one at most: why it ended without its last frame
        self._frames: deque[Frame] = deque(maxlen=num_held)
        self._news = asyncio.Event()
        self._clock = clock
        self._submitted_at = submitted_at
        self._started_at: float | None = None
        self._on_cancel: Callable[[], None] = lambda: None
        self._read_position: Callable[[], int] = lambda: 0

    def __del__(self) -> None:
        if self.on_gone is not None:
            self.on_gone()

    def connect(self, on_cancel: Callable[[], None], read_position: Callable[[], int]) -> None:
        """Tells the ticket how to reach the scheduler."""
        self._on_cancel, self._read_position = on_cancel, read_position

    # What a client sees.

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """The frames as they are made; the last one is step `num_steps`. For one reader, once.

        Leaving early cancels the job.

        Raises:
          Cancelled, DeadlinePassed, EngineFailed: if the job ended without its last frame.
        """
        with self._read_to_the_end():
            while True:
                while self._frames:
                    yield self._frames.popleft()
                if self.ended:
                    break
                await self._news.wait()
                self._news.clear()

    async def result(self) -> list[Frame]:
        """All frames, the last one last; raises what `frames` raises, and cancels as it does."""
        with self._read_to_the_end():
            while not self.ended:
                await self._news.wait()
                self._news.clear()
        return list(self._frames)

    @contextlib.contextmanager
    def _read_to_the_end(self) -> Iterator[None]:
        """Who stops reading cancels; who has read all learns how it ended."""
        try:
            yield
        finally:
            self.cancel()
        if self._errors:
            raise self._errors.pop()  # the traceback holds this ticket, so the ticket lets go of the error

    def cancel(self) -> None:
        """Stops the work after the slices that are posted. Does nothing after the end; any number of calls."""
        if not self.ended:
            self._on_cancel()

    @property
    def position(self) -> int:
        """0: begun or ended; 1: the next to begin; and so on."""
        return self._read_position()

    @property
    def frame_bytes(self) -> int:
        """Memory of the frames that may wait for the reader."""
        num_frames = self.job.num_frames if self.num_held is None else min(self.job.num_frames, self.num_held)
        return num_frames * self.job.frame_bytes

    @property
    def started(self) -> bool:
        return self._started_at is not None

    @property
    def queue_seconds(self) -> float:
        """From admission to the first slice, or till now."""
        return (self._clock() if self._started_at is None else self._started_at) - self._submitted_at

    # What the scheduler does.

    def start(self, now: float) -> None:
        self._started_at = now

    def offer(self, frame: Frame, *, last: bool = False) -> None:
        """Leaves a frame. After the last one comes `finish` at once, and wakes the reader."""
        self._frames.append(frame)
        if not last:
            self._news.set()

    def finish(self, error: Exception | None = None) -> None:
        """The end; a second one is ignored."""
        if not self.ended:
            self._errors = [] if error is None else [error]
            self.ended = True
            self.connect(lambda: None, lambda: 0)  # lets go of the run and its arrays
            self._news.set()
