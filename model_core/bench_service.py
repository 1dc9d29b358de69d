"""`rbm bench service`: what of the engine's speed reaches clients through HTTP, and what overload does to it.

The server is a process of its own, with its own defaults; the generator (`bench_load`) shares its cores and so
makes every figure a little worse than a client elsewhere would see. Everything is on loopback and bounded in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_core import bench
from model_core.bench_load import Client, Shot, poisson_times, schedule, with_status
from model_core.bench_process import ServerError, ServerProcess
from model_core.bench_saturation import MANY_PATH, PATH, STEPS, answers_per_second, kernel_ms, saturate
from model_core.rbm import RBMParams

SHORT, LONG = "/sample?steps=20", "/sample?steps=5000"
_LONG_SHARE, _MIXED_LOAD = 0.1, 0.5  # of the requests; of capacity, in steps
_LIMITS = {2.0: 0.9, 5.0: 0.9, 10.0: 0.8}  # goodput as a share of capacity, by overload
_STANDING = 200  # connections that are open when a load begins; it opens more if it needs them
_GRACE = 10.0  # seconds to wait for answers after the last request
_REFUSED = (429, 503)


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    seconds: float = 10.0  # of each load
    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0)  # times capacity
    clients: tuple[int, ...] = (16, 32, 64)  # of the closed loops that find capacity; 64 is all that the door lets in
    seed: int = 0


async def run(server: ServerProcess, params: RBMParams, options: Options) -> dict[str, Any]:
    """All figures of a server that is ready and serves `params`."""
    started_on = bench.computer()
    kernel, idle, before = kernel_ms(params), await _idle(server), server.memory_mb()
    saturation = await saturate(server, params, options.clients, options.seconds / 5)
    capacity = saturation["capacity_per_second"]
    mixed = await _mixed(server, capacity, options)
    loads = await _loads(server, capacity, saturation["clients"], options)
    figures = {
        "bench": "service",
        "schema": bench.SCHEMA,
        "computer": started_on,
        "path": PATH,
        "kernel_ms": kernel,
        "idle_ms": _milliseconds(with_status(idle, 200)),
        **saturation,
        "memory_mb": {"before": before, "after": server.memory_mb(), "peak": _highest(loads)},
        "loads": loads,
        "mixed": mixed,
    }
    return figures | {"lines": lines(figures)}


def lines(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the issue that this bench can judge."""
    idle, kernel, mixed = figures["idle_ms"]["p50"], figures["kernel_ms"], figures["mixed"]
    extra = None if idle is None else idle - kernel
    found = [
        bench.line(f"share of all cores' raw chain-steps through HTTP, {PATH}", figures["share_of_raw"], 0.8),
        bench.line(f"the same, {MANY_PATH}", figures["share_of_raw_8_chains"], 0.8),
        bench.line(f"idle {PATH}, median, ms above the kernel", extra, 5.0, below=True),
        bench.line("p99 of steps=20 beside steps=5000, times alone", mixed["ratio"], 3.0, below=True),
    ]
    for load in figures["loads"]:
        if load["times"] in _LIMITS:
            name = f"at {load['times']:g} times capacity"
            share, bound = load["goodput_share"], _LIMITS[load["times"]]
            found.append(bench.line(f"goodput {name}, share of capacity", share, bound))
            found.append(bench.line(f"refusals {name}, p99 ms", load["refused_ms"]["p99"], 100.0, below=True))
    memory = figures["memory_mb"]
    grown = None if memory["peak"] is None else memory["peak"] - memory["before"]
    found.append(bench.line("memory at its peak, MB more than idle", grown, 50.0, below=True))
    return found


def describe(figures: dict[str, Any]) -> str:
    """The figures as tables for a person."""
    rows = [
        (
            f"{load['times']:g} x",
            *(load[key] for key in ("offered_per_second", "goodput_per_second", "goodput_share")),
            *(load["accepted_ms"][key] for key in ("p50", "p99")),
            *(load["refused_ms"][key] for key in ("p50", "p99")),
            load["unanswered"],
            load["memory_mb"],
        )
        for load in figures["loads"]
    ]
    header = ("load", "offered/s", "goodput/s", "of capacity", "200 p50 ms", "200 p99 ms", "429 p50 ms", "429 p99 ms")
    table = bench.markdown((*header, "no answer", "memory MB"), rows)
    mixed, memory = figures["mixed"], figures["memory_mb"]
    idle, kernel, raw = figures["idle_ms"], figures["kernel_ms"], figures["raw_chain_steps_per_second"]
    alone, beside = mixed["alone_ms"]["p99"], mixed["beside_ms"]["p99"]
    head = (
        f"{figures['path']}: {bench.cell(kernel)} ms in the kernel alone, {bench.cell(idle['p50'])} ms through HTTP on "
        f"an idle server (p99 {bench.cell(idle['p99'])} ms). Capacity {bench.cell(figures['capacity_per_second'])}/s, "
        f"with {figures['clients']} clients, {bench.cell(100 * figures['share_of_raw'])} % of {bench.cell(raw)} bare "
        f"chain-steps/s. Memory {bench.cell(memory['before'])} MB idle, {bench.cell(memory['peak'])} MB at its peak, "
        f"{bench.cell(memory['after'])} MB after. p99 of {SHORT}: {bench.cell(alone)} ms alone, {bench.cell(beside)} "
        f"ms beside {LONG} ({bench.cell(mixed['requests_per_second'])} requests/s in all)."
    )
    return "\n\n".join([head, bench.describe_computer(figures["computer"]), table, bench.lines_table(figures["lines"])])


async def _idle(server: ServerProcess) -> list[Shot]:
    """One request after the other."""
    async with Client(server.host, server.port) as client:
        shots = [await client.one(PATH) for _ in range(110)][10:]
    statuses = sorted({shot.status for shot in shots})
    if statuses != [200]:
        raise ServerError(f"An idle server answered GET {PATH} with status {statuses} (0: not at all), not 200.")
    return shots


async def _loads(server: ServerProcess, capacity: float, clients: int, options: Options) -> list[dict[str, Any]]:
    """All open loads. Goodput is compared with the capacity just before and after: a shared computer's changes."""
    loads: list[dict[str, Any]] = []
    before = await answers_per_second(server, PATH, clients, options.seconds / 5)
    for times in options.loads:
        load = await _load(server, capacity, times, options)
        after = await answers_per_second(server, PATH, clients, options.seconds / 5)
        beside, before = (before + after) / 2, after
        share = load["goodput_per_second"] / beside if beside else None
        loads.append(load | {"capacity_per_second": beside, "goodput_share": share})
    return loads


async def _load(server: ServerProcess, capacity: float, times: float, options: Options) -> dict[str, Any]:
    """Poisson arrivals at `times` capacity."""
    server.forget_peak()
    shots = schedule(poisson_times(times * capacity, options.seconds, options.seed), [(PATH, 1.0)], options.seed)
    async with Client(server.host, server.port) as client:
        await client.open(_STANDING)
        await client.open_loop(shots, grace=_GRACE)
    good = [shot for shot in shots if shot.status == 200 and shot.done is not None and shot.done <= options.seconds]
    await asyncio.sleep(1.0)
    return {
        "times": times,
        "offered_per_second": len(shots) / options.seconds,
        "goodput_per_second": len(good) / options.seconds,
        "accepted_ms": _milliseconds(with_status(shots, 200)),
        "refused_ms": _milliseconds(with_status(shots, *_REFUSED)),
        "refused": len(with_status(shots, *_REFUSED)),
        "unanswered": sum(shot.status == 0 for shot in shots),
        "other_status": sorted({shot.status for shot in shots} - {0, 200, *_REFUSED}),
        "memory_mb": server.peak_memory_mb(),
    }


async def _mixed(server: ServerProcess, capacity: float, options: Options) -> dict[str, Any]:
    """The p99 of short requests alone, and with every tenth request a long one; the same times of arrival."""
    mean_steps = (1 - _LONG_SHARE) * 20 + _LONG_SHARE * 5000
    rate = _MIXED_LOAD * capacity * STEPS / mean_steps
    times = poisson_times(rate, options.seconds, options.seed)
    beside = schedule(times, [(SHORT, 1 - _LONG_SHARE), (LONG, _LONG_SHARE)], options.seed)
    alone = [Shot(shot.path, shot.due) for shot in beside if shot.path == SHORT]
    found: dict[str, Any] = {"requests_per_second": rate}
    for name, shots in (("alone_ms", alone), ("beside_ms", beside)):
        async with Client(server.host, server.port) as client:
            await client.open_loop(shots, grace=_GRACE)
        found[name] = _milliseconds(with_status([shot for shot in shots if shot.path == SHORT], 200))
        await asyncio.sleep(0.5)
    p99 = found["alone_ms"]["p99"], found["beside_ms"]["p99"]
    return found | {"ratio": None if None in p99 or not p99[0] else p99[1] / p99[0]}


def _highest(loads: Sequence[dict[str, Any]]) -> float | None:
    peaks = [load["memory_mb"] for load in loads if load["memory_mb"] is not None]
    return max(peaks, default=None)


def _milliseconds(seconds: Sequence[float]) -> dict[str, float | None]:
    found = {name: bench.quantile(seconds, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {name: None if value is None else 1e3 * value for name, value in found.items()}
