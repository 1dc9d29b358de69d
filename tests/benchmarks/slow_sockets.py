"""Slow and silent clients against a real `rbm serve` with its default limits, and what the good clients notice.

    python tests/benchmarks/slow_sockets.py [SECONDS_A_WINDOW] [PAIRS]

Windows alternate: without attackers, with them, ..., without. In those with them there are always 1,000 sockets that
say nothing, 200 that send their headers a byte a second, and 200 that send their body so: whatever the server closes is
opened anew when its limit would have been over. Good clients ask for short samples all the while, one after the other.

The line: the silent and the slow headers are closed within 10 s, the slow bodies within 30 s (and a second of grace);
the good clients' rate under attack is at least 0.95 of that without, in the median; none of them is refused.
Where other programs share the computer, give this one the processors: `chrt -r 4 python ...`; and look at the
share of a processor that the attackers take while nobody else asks, which hardly depends on them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import selectors
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.service.http_helpers import ServerProcess, serving_what_ships

SILENT, HEADERS, BODIES = "silent", "slow headers", "slow bodies"
NUM_ATTACKERS = {SILENT: 1000, HEADERS: 200, BODIES: 200}
LIMITS = {SILENT: 10.0, HEADERS: 10.0, BODIES: 30.0}  # seconds, the defaults of the settings
GRACE = 1.0  # the server looks once in a while; the attacker too
OPENINGS = {
    SILENT: b"",
    HEADERS: b"GET /sample HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    BODIES: b"POST /features HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n",
}
NUM_GOOD = 4
GOOD_REQUEST = b"GET /sample?steps=20 HTTP/1.1\r\nHost: x\r\n\r\n"
LINE = 0.95


class Attacker:
    """A socket that stays open as long as it may, and is opened anew.

    `selector` tells what has come on it: to ask a thousand sockets would cost the server's computer more than they do.
    """

    def __init__(self, port: int, kind: str, delay: float, selector: selectors.BaseSelector) -> None:
        self.port, self.kind, self.selector = port, kind, selector
        self.socket: socket.socket | None = None
        self.opened_at = 0.0
        self.next_open = time.monotonic() + delay
        self.lives: list[float] = []  # seconds, of those that the server closed

    def tick(self) -> None:
        """Once a second: opens, or drips."""
        now = time.monotonic()
        if self.socket is None:
            if now >= self.next_open:
                self._open(now)
        elif self.kind != SILENT:
            with contextlib.suppress(OSError):  # it was closed: the selector will tell
                self.socket.send(b"x")

    def hear(self) -> None:
        """Something came: an answer, which nobody wants, or the end."""
        assert self.socket is not None
        with contextlib.suppress(OSError):
            if self.socket.recv(4096):
                return
        self.lives.append(time.monotonic() - self.opened_at)
        self.selector.unregister(self.socket)
        self.socket.close()
        self.socket, self.next_open = None, self.opened_at + LIMITS[self.kind]

    def _open(self, now: float) -> None:
        with contextlib.suppress(OSError):
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            self.selector.register(self.socket, selectors.EVENT_READ, self)
            self.socket.sendall(OPENINGS[self.kind])
            self.socket.setblocking(False)
        self.opened_at = now


def hear_until(end: float, selector: selectors.BaseSelector) -> None:
    while (left := end - time.monotonic()) > 0:
        if not selector.get_map():
            time.sleep(left)
            return
        for key, _ in selector.select(left):
            key.data.hear()


def attack(port: int, pipe: Connection, counts: dict[str, int]) -> None:
    """The attackers' process: until it is told to stop, then it answers with the lives of their sockets."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(kinds)
    selector = selectors.DefaultSelector()
    # They come within as many seconds as they may stay, so that they do not all come back at once.
    crowd = [Attacker(port, kind, LIMITS[kind] * number / len(kinds), selector) for number, kind in enumerate(kinds)]
    while not pipe.poll():
        began = time.monotonic()
        for number, attacker in enumerate(crowd):
            attacker.tick()
            if number % 50 == 49:  # spread over the second
                hear_until(began + number / len(crowd), selector)
        hear_until(began + 1.0, selector)
    lives: dict[str, list[float]] = {kind: [] for kind in NUM_ATTACKERS}
    for attacker in crowd:
        lives[attacker.kind] += attacker.lives
        if attacker.socket is not None:  # not closed yet: as old as it is
            lives[attacker.kind].append(time.monotonic() - attacker.opened_at)
    pipe.send(lives)


class Good:
    """A client that asks, reads the answer, and asks again, on one connection."""

    def __init__(self, port: int, statuses: Counter[str]) -> None:
        self.statuses, self._port, self._stop = statuses, port, False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection,
            connection.makefile("rb") as file,
        ):
            while not self._stop:
                connection.sendall(GOOD_REQUEST)
                self.statuses[file.readline().split()[1].decode()] += 1
                length = 0
                while (line := file.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                file.read(length)

    def stop(self) -> None:
        self._stop = True
        self._thread.join()


def cpu_seconds(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def window(server: ServerProcess, seconds: float) -> tuple[float, float, Counter[str]]:
    """Good answers a second, milliseconds of the processor for each, all statuses."""
    statuses: Counter[str] = Counter()
    began, busy = time.perf_counter(), cpu_seconds(server)
    clients = [Good(server.port, statuses) for _ in range(NUM_GOOD)]
    time.sleep(seconds)
    for client in clients:
        client.stop()
    cost = 1e3 * (cpu_seconds(server) - busy) / statuses["200"]
    return statuses["200"] / (time.perf_counter() - began), cost, statuses


@contextlib.contextmanager
def attackers(server: ServerProcess, counts: dict[str, int], lives: dict[str, list[float]]) -> Iterator[None]:
    """Has them there, each kind at least once through its limit; adds the lives of their sockets to `lives`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=attack, args=(server.port, theirs, counts))
    process.start()
    try:
        time.sleep(max(LIMITS.values()) + GRACE)
        yield
        ours.send("stop")
        for kind, seen in ours.recv().items():
            lives.setdefault(kind, []).extend(seen)
    finally:
        process.join(10)
        process.kill()
    time.sleep(2.0)


def kept(windows: list[float]) -> float:
    """Each window with attackers against the mean of the two beside it: the median of these shares."""
    beside = [(before + after) / 2 for before, after in zip(windows[::2], windows[2::2], strict=False)]
    return round(statistics.median(found / alone for found, alone in zip(windows[1::2], beside, strict=True)), 3)


def measure(server: ServerProcess, seconds: float, num_pairs: int) -> dict[str, Any]:
    few: dict[str, list[float]] = {}
    with attackers(server, dict.fromkeys(LIMITS, 5), few):
        time.sleep(max(LIMITS.values()))
    lives: dict[str, list[float]] = {}
    rates: list[float] = []
    costs: list[float] = []
    spent: list[float] = []
    statuses: Counter[str] = Counter()
    window(server, 2.0)
    for number in range(2 * num_pairs + 1):
        attacked = bool(number % 2)
        with attackers(server, NUM_ATTACKERS, lives) if attacked else contextlib.nullcontext():
            if attacked:
                busy = cpu_seconds(server)
                time.sleep(5.0)
                spent.append(round((cpu_seconds(server) - busy) / 5.0, 3))
            rate, cost, seen = window(server, seconds)
        rates.append(round(rate))
        costs.append(round(cost, 3))
        statuses += seen
        print(f"{'attacked' if attacked else 'alone'}: {rate:.0f}/s, {cost:.3f} ms each", file=sys.stderr, flush=True)
    return {
        "share_of_rate": kept(rates),
        "rates": rates,
        "cost_alone_to_cost_attacked": round(1 / kept(costs), 3),
        "processor_ms_an_answer": costs,
        "processors_spent_on_attackers_alone": spent,
        "statuses": statuses,
        "sockets": {kind: len(seen) for kind, seen in lives.items()},
        "longest_seconds_open": {kind: round(max(seen), 1) for kind, seen in lives.items()},
        "longest_seconds_open_of_few": {kind: round(max(seen), 1) for kind, seen in few.items()},
    }


def main(seconds: float, num_pairs: int) -> int:
    with serving_what_ships() as server:
        found = measure(server, seconds, num_pairs)
        found["peak_mb"] = round(server.memory_mb("VmHWM"))
    longest = [found["longest_seconds_open"], found["longest_seconds_open_of_few"]]
    closed = all(lives[kind] <= LIMITS[kind] + GRACE for lives in longest for kind in LIMITS)
    found["held"] = closed and found["share_of_rate"] >= LINE and set(found["statuses"]) == {"200"}
    print(json.dumps(found, indent=2))
    return int(not found["held"])


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 30.0, int(sys.argv[2]) if sys.argv[2:] else 3))
