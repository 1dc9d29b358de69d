"""What part of the engine's bare speed reaches clients who leave a server no pause.

Bare speed and delivered speed are taken in turn, round after round, and compared within a round: on a shared computer
they differ by a tenth from one minute to the next. Bare is what each core does with calls like the requests: a chain at
a time for those of one chain, eight for those of eight. (A busy server puts the chains of several requests into one
call, which is quicker than a chain at a time, so a server that costs nothing would have a share a little above 1.)

How many clients it takes to saturate a server depends on the computer: a first round tries several numbers.
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
_WARM_UP = 0.3  # seconds until the line of requests is as long as it will be


def kernel_ms(params: RBMParams) -> float:
    """Median of what the engine alone takes for the chain of one request."""
    engine, prepared = _engine(params)

    def work(seed: int) -> None:
        engine.advance(prepared, _chains(params, 1, seed))

    return 1e3 * statistics.median([bench.seconds_of(work, seed) for seed in range(60)][10:])


def raw_speed(params: RBMParams, num_chains: int, seconds: float, seed: int = 0) -> float:
    """Chain-steps a second of the engine on all cores, in calls of `num_chains`, while the server is idle."""
    engine, prepared = _engine(params)
    engine.advance(prepared, _chains(params, 1, 0))

    def work(thread: int) -> int:
        done, deadline = 0, time.perf_counter() + seconds
        chains = _chains(params, num_chains, 1000 * seed + thread)
        while time.perf_counter() < deadline:
            engine.advance(prepared, chains)
            done += num_chains * STEPS
        return done

    num_threads = bench.computer()["cores"]
    with ThreadPoolExecutor(num_threads) as pool:
        started = time.perf_counter()
        return sum(pool.map(work, range(num_threads))) / (time.perf_counter() - started)


async def saturate(server: ServerProcess, params: RBMParams, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """Capacity in answers a second, and the chain-steps of the answers as shares of the bare speed.

    Args:
      clients: numbers of clients to try; each asks again as soon as it has its answer.
      seconds: of each timing.
    """
    tried = {count: await answers_per_second(server, PATH, count, seconds) for count in clients}
    best = max(tried, key=lambda count: tried[count])
    raw: list[float] = []
    raw_many: list[float] = []
    plain: list[float] = []
    many: list[float] = []
    for number in range(_ROUNDS):
        raw.append(await asyncio.to_thread(raw_speed, params, 1, seconds, number))
        plain.append(await answers_per_second(server, PATH, best, seconds))
        raw_many.append(await asyncio.to_thread(raw_speed, params, MANY, seconds, number))
        many.append(await answers_per_second(server, MANY_PATH, best, seconds))
    return {
        "raw_chain_steps_per_second": statistics.median(raw),
        "raw_chain_steps_per_second_8_chains": statistics.median(raw_many),
        "capacity_per_second": statistics.median(plain),
        "clients": best,
        "share_of_raw": _share(plain, raw, 1),
        "share_of_raw_8_chains": _share(many, raw_many, MANY),
    }


def _share(answers: Sequence[float], raw: Sequence[float], chains: int) -> float:
    return statistics.median(rate * chains * STEPS / speed for rate, speed in zip(answers, raw, strict=True))


async def answers_per_second(server: ServerProcess, path: str, clients: int, seconds: float) -> float:
    """Of a closed loop: `clients` that each ask again as soon as they have their answer."""
    async with Client(server.host, server.port) as client:
        await client.open(clients)
        shots = await client.closed_loop(path, concurrency=clients, seconds=_WARM_UP + seconds)
    await asyncio.sleep(0.2)
    return sum(shot.status == 200 and (shot.done or 0.0) >= _WARM_UP for shot in shots) / seconds


def _engine(params: RBMParams) -> tuple[Any, Any]:
    from model_core.engine_numba import NumbaEngine

    engine = NumbaEngine(num_threads=1)
    return engine, engine.prepare(params)


def _chains(params: RBMParams, count: int, seed: int) -> Chains:
    seeds = chain_seeds(seed, count)
    steps, zeros = np.full(count, STEPS, np.int64), np.zeros(count, np.int64)
    return Chains(noise(seeds, params.num_visible), seeds, steps, zeros, np.ones(count, np.float32), None)
