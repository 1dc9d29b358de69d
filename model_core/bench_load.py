"""An open-loop load generator for loopback: requests leave when the schedule says, whatever the server does.

A closed loop waits for answers before it asks again, so it stops just when the server is slow and its latencies look
good (Tene's "coordinated omission"). Here arrivals are a Poisson process fixed in advance by a seed, and latency
counts from the *intended* time, the generator's own lateness included. It shares the server's cores, so it is
light: one `asyncio.Protocol` a connection, no HTTP library.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np

_TICK = 0.001  # seconds: what falls due within one leaves together, up to so much late
MAX_CONNECTIONS = 500  # a request that finds them all taken waits for one, and its latency counts that


@dataclass
class Shot:
    """One request: when it was due and what became of it, in seconds since the start of the load."""

    path: str
    due: float
    done: float | None = None  # when the last byte of the answer was there
    status: int = 0  # 0: no answer; the connection broke, or the load ended first

    @property
    def seconds(self) -> float | None:
        """Latency from the intended time."""
        return None if self.done is None else self.done - self.due


def poisson_times(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of a Poisson process of `rate` a second in [0, seconds): a function of the arguments."""
    if rate <= 0 or seconds <= 0:
        return []
    rng = np.random.default_rng(seed)
    expected = rate * seconds
    times = np.cumsum(rng.exponential(1.0 / rate, int(expected + 10 * expected**0.5 + 20)))
    return [float(one) for one in times[times < seconds]]


def schedule(times: Sequence[float], paths: Sequence[tuple[str, float]], seed: int) -> list[Shot]:
    """Gives every arrival one of `paths`, pairs of (path, share), drawn by `seed`."""
    shares = np.array([share for _, share in paths])
    chosen = np.random.default_rng(seed).choice(len(paths), len(times), p=shares / shares.sum())
    return [Shot(paths[index][0], due) for index, due in zip(chosen, times, strict=True)]


class Client:
    """Connections to one server, kept alive and used again. One load a client; leaving it closes what is open."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._waiting: deque[Shot] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._started = time.perf_counter()
        self._finished: Callable[[Shot], None] = lambda shot: None
        self._requests: dict[str, bytes] = {}  # by path

    def request(self, path: str) -> bytes:
        """What is sent to ask for `path`."""
        if path not in self._requests:
            head = f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAccept: */*\r\n\r\n"
            self._requests[path] = head.encode()
        return self._requests[path]

    def now(self) -> float:
        return time.perf_counter() - self._started

    async def open(self, count: int) -> None:
        """Opens `count` connections before a load, whose first requests would else wait for all of them to open."""
        for _ in range(count):
            await self._connect()

    async def open_loop(self, shots: Sequence[Shot], *, grace: float) -> None:
        """Sends every shot at its time, then waits `grace` seconds at most for the answers.

        Until the last shot is sent the generator looks once a tick, at what is due and at what has come, and sleeps in
        between. To wake for every answer took a tenth of all cores at ten times capacity, and the server's caches.
        """
        left = len(shots)
        all_done = asyncio.Event()

        def count(shot: Shot) -> None:
            nonlocal left
            left -= 1
            if not left:
                all_done.set()

        with _without_pauses():
            self._begin(count)
            for shot in shots:
                while shot.due > self.now():
                    time.sleep(_TICK)  # not asyncio's: that would go on looking at every socket
                    await asyncio.sleep(0)
                self._send(shot)
            if shots:
                await self._wait(all_done, grace)

    async def closed_loop(self, path: str, *, concurrency: int, seconds: float) -> list[Shot]:
        """So many clients that each ask again as soon as they have their answer."""
        shots: list[Shot] = []

        def ask(_: Shot | None = None) -> None:
            if self.now() < seconds:
                shots.append(Shot(path, self.now()))
                self._send(shots[-1])

        with _without_pauses():
            self._begin(ask)
            for _ in range(concurrency):
                ask()
            await asyncio.sleep(seconds)
            self._begin(lambda shot: None, keep_time=True)
        return shots

    async def one(self, path: str, *, timeout: float = 30.0) -> Shot:
        """One request alone."""
        done = asyncio.Event()
        self._begin(lambda shot: done.set())
        shot = Shot(path, 0.0)
        self._send(shot)
        await self._wait(done, timeout)
        return shot

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._begin(lambda shot: None, keep_time=True)
        self._waiting.clear()
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # lets the connections end

    def _begin(self, finished: Callable[[Shot], None], *, keep_time: bool = False) -> None:
        self._finished = finished
        if not keep_time:
            self._started = time.perf_counter()

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    def _send(self, shot: Shot) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.ask(shot)
                return
        self._waiting.append(shot)
        if len(self._open) + len(self._opening) < MAX_CONNECTIONS:
            task = asyncio.ensure_future(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self.host, self.port)
        except OSError:
            if self._waiting:
                self.finish(self._waiting.popleft())
            return
        self._open.add(connection)
        self.give_back(connection)

    def give_back(self, connection: _Connection) -> None:
        """A connection has nothing to do."""
        if not connection.usable:
            return
        if self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection, shot: Shot | None) -> None:
        """A connection is gone, with the shot that it was waiting for."""
        self._open.discard(connection)
        if shot is not None:
            self.finish(shot)

    def finish(self, shot: Shot, status: int = 0) -> None:
        shot.status = status
        shot.done = self.now() if status else None
        self._finished(shot)


class _Connection(asyncio.Protocol):
    """One request at a time; reads the status and as many bytes as Content-Length says."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._shot: Shot | None = None
        self._head = b""
        self._missing = -1  # bytes of the body; -1: the head is not complete

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def ask(self, shot: Shot) -> None:
        self._shot, self._head, self._missing = shot, b"", -1
        self._transport.write(self._client.request(shot.path))

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._missing = content_length(self._head[:end])
            data = self._head[end + 4 :]
        self._missing -= len(data)
        if self._missing <= 0 and self._shot is not None:
            shot, self._shot = self._shot, None
            self._client.finish(shot, int(self._head[9:12]))
            self._client.give_back(self)

    def connection_lost(self, exc: Exception | None) -> None:
        shot, self._shot = self._shot, None
        self._client.lost(self, shot)

    def abort(self) -> None:
        self._transport.abort()


@contextmanager
def _without_pauses() -> Iterator[None]:
    """A pause of the generator's own, for garbage, would look like one of the server."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def content_length(head: bytes) -> int:
    """The length that the head of an answer declares; 0 without one (304, 204)."""
    lower = head.lower()
    start = lower.find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    return int(lower[start + 17 :].partition(b"\r\n")[0])


def with_status(shots: Iterable[Shot], *statuses: int) -> list[float]:
    """Latencies of the shots that got one of these answers."""
    return [shot.seconds for shot in shots if shot.status in statuses and shot.seconds is not None]
