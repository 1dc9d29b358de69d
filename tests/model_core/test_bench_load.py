"""The load generator of `rbm bench service`, against a server whose answers are known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from model_core.bench_load import Client, Shot, content_length, poisson_times, schedule, with_status


def test_arrivals_are_a_function_of_the_seed_and_poisson() -> None:
    times = poisson_times(1000.0, 10.0, seed=3)
    assert times == poisson_times(1000.0, 10.0, seed=3) != poisson_times(1000.0, 10.0, seed=4)
    assert times == sorted(times) and times[0] > 0 and times[-1] < 10
    # 10,000 expected, deviation 100; gaps of mean 1 ms whose deviation is their mean. Five sigma: one in a million.
    assert abs(len(times) - 10_000) < 500
    gaps = np.diff(times)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05
    assert poisson_times(0.0, 10.0, seed=3) == []


def test_a_schedule_draws_paths_by_their_shares() -> None:
    shots = schedule(poisson_times(1000.0, 10.0, 0), [("/short", 0.9), ("/long", 0.1)], seed=1)
    assert [shot.path for shot in shots] == [
        shot.path for shot in schedule([shot.due for shot in shots], [("/short", 0.9), ("/long", 0.1)], seed=1)
    ]
    share = sum(shot.path == "/long" for shot in shots) / len(shots)
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / len(shots))


def test_latency_counts_from_the_intended_time() -> None:
    late = Shot("/", due=1.0, done=3.5, status=200)
    assert late.seconds == 2.5
    assert with_status([late, Shot("/", 0.0, 9.0, 429), Shot("/", 0.0)], 200) == [2.5]


def test_content_length_is_read_in_any_case() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\nA: b\r\ncOnTent-Length: 42\r\nC: d") == 42
    assert content_length(b"HTTP/1.1 304 Not Modified\r\nA: b") == 0


@contextmanager
def plain_server(delay: float = 0.0) -> Iterator[Any]:
    """Answers 200 in two pieces, 429 to /full, and hangs up on /gone."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split()[1]
                if path == b"/gone":
                    break
                await asyncio.sleep(delay)
                status = b"429 Too Many Requests" if path == b"/full" else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 6\r\n\r\nabc")
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(b"def")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def start() -> tuple[asyncio.Server, int]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    yield start


async def _drive(paths: list[str], delay: float = 0.0) -> list[Shot]:
    with plain_server(delay) as start:
        server, port = await start()
        shots = [Shot(path, 0.001 * number) for number, path in enumerate(paths)]
        async with Client("127.0.0.1", port) as client:
            await client.open_loop(shots, grace=5.0)
        server.close()
    return shots


def test_the_open_loop_sends_all_and_tells_answers_from_refusals_and_losses() -> None:
    shots = asyncio.run(_drive(["/", "/full", "/gone", "/"] * 5))
    assert [shot.status for shot in shots] == [200, 429, 0, 200] * 5
    assert all((shot.seconds is None) == (shot.status == 0) for shot in shots)
    assert all(shot.seconds is None or shot.seconds > 0 for shot in shots)


def test_the_open_loop_does_not_wait_for_answers() -> None:
    """50 requests in 50 ms to a server that takes 200 ms: none of them waits for the one before."""
    shots = asyncio.run(_drive(["/"] * 50, delay=0.2))
    done = [shot.done for shot in shots if shot.done is not None]
    assert len(done) == 50 and max(done) < 50 * 0.2


def test_connections_that_stand_are_used_first() -> None:
    async def drive() -> tuple[int, int, list[Shot]]:
        with plain_server(delay=0.05) as start:
            server, port = await start()
            async with Client("127.0.0.1", port) as client:
                await client.open(3)
                before, shots = len(client._open), [Shot("/", 0.0) for _ in range(5)]
                await client.open_loop(shots, grace=5.0)
                after = len(client._open)
            server.close()
        return before, after, shots

    before, after, shots = asyncio.run(drive())
    assert (before, after) == (3, 5) and [shot.status for shot in shots] == [200] * 5


def test_a_closed_loop_asks_again_and_ends() -> None:
    async def drive() -> list[Shot]:
        with plain_server() as start:
            server, port = await start()
            async with Client("127.0.0.1", port) as client:
                shots = await client.closed_loop("/", concurrency=2, seconds=0.2)
            server.close()
        return shots

    shots = asyncio.run(drive())
    assert len(shots) > 2 and sum(shot.status != 200 for shot in shots) <= 2
