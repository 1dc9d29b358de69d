"""What part of the engine's bare speed reaches clients who leave a server no pause.

Bare speed and delivered speed are taken in turn, round after round, and compared within a round: on a shared computer
they differ by a tenth from one minute to the next. How many clients it takes to saturate a server depends on the
computer, so several numbers are tried, and the one with the most answers counts.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from model_core import bench
from model_core.bench_load import Client
from model_core.bench_process import ServerProcess
from model_core.chains import Chains
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams

STEPS, MANY = 500, 8
PATH = f"/sample?steps={STEPS}"
MANY_PATH = f"{PATH}&n={MANY}"
_ROUNDS = 5


def kernel_ms(params: RBMParams) -> float:
    """Median of what the engine alone takes for the chain of one request."""
    engine, prepared = _engine(params)

    def work(seed: int) -> None:
        engine.advance(prepared, _chain(params, seed))

    return 1e3 * statistics.median([bench.seconds_of(work, seed) for seed in range(60)][10:])


def raw_speed(params: RBMParams, seconds: float) -> float:
    """Chain-steps a second of the engine on all cores, for chains one by one, while the server is idle."""
    engine, prepared = _engine(params)
    engine.advance(prepared, _chain(params, 0))

    def work(thread: int) -> int:
        done, deadline = 0, time.perf_counter() + seconds
        chain = _chain(params, thread)
        while time.perf_counter() < deadline:
            engine.advance(prepared, chain)
            done += STEPS
        return done

    num_threads = bench.computer()["cores"]
    with ThreadPoolExecutor(num_threads) as pool:
        return sum(pool.map(work, range(num_threads))) / seconds


async def saturate(server: ServerProcess, params: RBMParams, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """Capacity in answers a second, and the chain-steps of the answers as shares of the bare speed.

    Args:
      clients: numbers of clients to try; each asks again as soon as it has its answer.
      seconds: of each timing.
    """
    raw: list[float] = []
    many: list[float] = []
    plain: dict[int, list[float]] = {count: [] for count in clients}
    for _ in range(_ROUNDS):
        raw.append(await asyncio.to_thread(raw_speed, params, seconds))
        for count, found in plain.items():
            found.append(await _answers_per_second(server, PATH, count, seconds))
        many.append(await _answers_per_second(server, MANY_PATH, min(clients), seconds))
    best = max(plain, key=lambda count: statistics.median(plain[count]))
    capacity = statistics.median(plain[best])
    return {
        "raw_chain_steps_per_second": statistics.median(raw),
        "capacity_per_second": capacity,
        "clients": best,
        "capacity_by_clients": {str(count): statistics.median(found) for count, found in plain.items()},
        "share_of_raw": _share(plain[best], raw, 1),
        "share_of_raw_8_chains": _share(many, raw, MANY),
    }


def _share(answers: Sequence[float], raw: Sequence[float], chains: int) -> float:
    return statistics.median(rate * chains * STEPS / speed for rate, speed in zip(answers, raw, strict=True))


async def _answers_per_second(server: ServerProcess, path: str, clients: int, seconds: float) -> float:
    async with Client(server.host, server.port) as client:
        await client.open(clients)
        shots = await client.closed_loop(path, concurrency=clients, seconds=seconds)
    await asyncio.sleep(0.2)
    return sum(shot.status == 200 for shot in shots) / seconds


def _engine(params: RBMParams) -> tuple[Any, Any]:
    from model_core.engine_numba import NumbaEngine

    engine = NumbaEngine(num_threads=1)
    return engine, engine.prepare(params)


def _chain(params: RBMParams, seed: int) -> Chains:
    seeds = chain_seeds(seed, 1)
    start = noise(seeds, params.num_visible)
    return Chains(start, seeds, np.full(1, STEPS, np.int64), np.zeros(1, np.int64), np.ones(1, np.float32), None)
