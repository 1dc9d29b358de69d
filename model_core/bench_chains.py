"""`rbm bench chains`: chain-steps a second of our two engines, of the dense bound, and of peers.

The bound is what any implementation pays that multiplies matrices: v @ W and h @ W' in float32 and nothing else, no
sigmoid, no noise, in NumPy or TensorFlow, whichever is faster at that number of chains.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_core import bench
from model_core.annealing import base_rate_bias, sample_base, standard_betas
from model_core.chains import Chains, Engine, get_engine
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams

SIZES = (1, 2, 8, 64, 256, 1024)
BOUNDS = ("NumPy products", "TensorFlow products")
NUMBA, TENSORFLOW = "numba", "tensorflow"
_BURN_IN = 300  # steps from noise: how many units flip in a step decides our speed, so it must be the model's own
_AIS_CHAINS, _AIS_BETAS = 100, 15_000
_LATENCY_STEPS = 500


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    sizes: tuple[int, ...] = SIZES
    rounds: int = 5
    seconds: float = 0.5  # of one timing
    peers: bool = False
    ais: bool = False


def synthetic_params(num_visible: int = 784, num_hidden: int = 500, seed: int = 0) -> RBMParams:
    """A stand-in where no model has been trained: about a sixth of the visible units on; half the hidden ones."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0.0, 0.1, (num_visible, num_hidden)).astype(np.float32)
    visible_bias = (-1.6 - weights.sum(axis=1) / 2).astype(np.float32)
    return RBMParams(weights, visible_bias, (-weights.sum(axis=0) / 6).astype(np.float32))


def run(params: RBMParams, options: Options) -> dict[str, Any]:
    """All figures; see `lines` for what is asked of them."""
    started_on = bench.computer()
    engine = get_engine(NUMBA)
    prepared = engine.prepare(params)
    start = _burnt_in(engine, prepared, params, max(options.sizes))
    rows = [_race(params, start[:size], options) for size in options.sizes]
    figures: dict[str, Any] = {
        "bench": "chains",
        "schema": bench.SCHEMA,
        "computer": started_on,
        "units": [params.num_visible, params.num_hidden],
        "visible_on": float(start.mean()),
        "rounds": options.rounds,
        "chain_steps_per_second": rows,
        "one_chain_500_steps_ms": _latency(engine, prepared, params),
    }
    if options.ais:
        figures["ais_seconds"] = _ais(engine, prepared, params, start)
    figures["lines"] = lines(figures)
    return figures


def lines(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the issue that this bench can judge, with their aims."""
    by_size = {row["chains"]: row["rates"] for row in figures["chain_steps_per_second"]}
    found = []
    for size, bound, aim in ((1, 10.0, 25.0), (64, 3.0, 6.0)):
        value = bench.ratio(by_size[size], NUMBA, [TENSORFLOW]) if size in by_size else None
        found.append(bench.line(f"{size} chain{'s' * (size > 1)}, times the TensorFlow engine", value, bound, aim))
    for size, rates in by_size.items():
        if size >= 2:
            value = bench.ratio(rates, NUMBA, BOUNDS)
            found.append(bench.line(f"{size} chains, times the dense bound", value, 1.5, 4.0))
    found.append(bench.line("1 chain, 500 steps, ms", figures["one_chain_500_steps_ms"], 8.0, 3.0, below=True))
    ais = figures.get("ais_seconds")
    found.append(bench.line("AIS, 100 chains x 15,000 temperatures, s", ais, 15.0, 5.0, below=True))
    return found


def describe(figures: dict[str, Any]) -> str:
    """The figures as tables for a person."""
    rows = figures["chain_steps_per_second"]
    names = list(rows[0]["rates"])
    table = bench.markdown(
        ("chains", *names, "x TensorFlow", "x bound"),
        [
            (
                row["chains"],
                *(row["rates"][name]["median"] for name in names),
                row["times_tensorflow"],
                row["times_bound"],
            )
            for row in rows
        ],
    )
    units = "x".join(map(str, figures["units"]))
    head = f"Chain-steps a second, {units} units, medians of {figures['rounds']} rounds"
    return "\n\n".join([head, bench.describe_computer(figures["computer"]), table, bench.lines_table(figures["lines"])])


def _race(params: RBMParams, start: np.ndarray, options: Options) -> dict[str, Any]:
    contestants = contestants_for(params, start, peers=options.peers)
    seconds = bench.time_in_turn(contestants, rounds=options.rounds, seconds=options.seconds)
    rates = bench.rates(seconds, len(start))
    return {
        "chains": len(start),
        "rates": rates,
        "times_tensorflow": bench.ratio(rates, NUMBA, [TENSORFLOW]),
        "times_bound": bench.ratio(rates, NUMBA, BOUNDS),
    }


def contestants_for(params: RBMParams, start: np.ndarray, *, peers: bool) -> dict[str, bench.Work]:
    """Everybody's way to advance the chains of `start` by a number of steps."""
    works = {name: _engine_work(get_engine(name), params, start) for name in (NUMBA, TENSORFLOW)}
    works["NumPy products"] = _numpy_products(params, len(start))
    works["TensorFlow products"] = _tensorflow_products(params, len(start))
    if peers:
        from model_core import bench_peers

        works |= bench_peers.gibbs_works(params, start)
    return works


def _engine_work(engine: Engine, params: RBMParams, start: np.ndarray) -> bench.Work:
    prepared = engine.prepare(params)

    def advance(num_steps: int) -> None:
        engine.advance(prepared, _chains(start, num_steps))

    return advance


def _chains(start: np.ndarray, num_steps: int, first_step: int = 0) -> Chains:
    count = len(start)
    return Chains(
        visible=start,
        seeds=chain_seeds(0, count),
        num_steps=np.full(count, num_steps, np.int64),
        first_step=np.full(count, first_step, np.int64),
        temperature=np.ones(count, np.float32),
        clamp=None,
    )


def _bounded_weights(params: RBMParams) -> np.ndarray:
    """The weights scaled so that products of products neither overflow nor fade into slow denormal numbers."""
    return (params.weights / max(float(np.linalg.norm(params.weights, 2)), 1e-6)).astype(np.float32)


def _numpy_products(params: RBMParams, count: int) -> bench.Work:
    weights = _bounded_weights(params)
    transposed = np.ascontiguousarray(weights.T)
    visible = np.ones((count, params.num_visible), np.float32)
    hidden = np.empty((count, params.num_hidden), np.float32)

    def multiply(num_steps: int) -> None:
        for _ in range(num_steps):
            np.matmul(visible, weights, out=hidden)
            np.matmul(hidden, transposed, out=visible)

    return multiply


def _tensorflow_products(params: RBMParams, count: int) -> bench.Work:
    from model_core.quiet_tensorflow import tf

    weights = tf.constant(_bounded_weights(params))
    transposed = tf.transpose(weights)
    start = tf.ones([count, params.num_visible])

    @tf.function
    def products(num_steps: Any) -> Any:
        visible = start
        for _ in tf.range(num_steps):
            visible = tf.matmul(tf.matmul(visible, weights), transposed)
        return visible

    return lambda num_steps: products(tf.constant(num_steps)).numpy()


def _burnt_in(engine: Engine, prepared: Any, params: RBMParams, count: int) -> np.ndarray:
    """Chains that have forgotten the noise they started from, uint8 [count, visible]."""
    return engine.advance(prepared, _chains(noise(chain_seeds(1, count), params.num_visible), _BURN_IN))[0]


def _latency(engine: Engine, prepared: Any, params: RBMParams, repeats: int = 31) -> float:
    """Median milliseconds of one chain from noise to 500 steps, as `/sample` asks for it."""
    found = []
    for number in range(repeats):
        chains = _chains(noise(chain_seeds(number, 1), params.num_visible), _LATENCY_STEPS)
        started = time.perf_counter()
        engine.advance(prepared, chains)
        found.append(time.perf_counter() - started)
    return 1e3 * statistics.median(found)


def _ais(engine: Any, prepared: Any, params: RBMParams, start: np.ndarray) -> float:
    """Seconds of one annealing from the base-rate model; its pixel means are those of the model's own samples."""
    base = base_rate_bias(start.mean(axis=0))
    seeds = chain_seeds(2, _AIS_CHAINS)
    betas, visible = standard_betas(_AIS_BETAS), sample_base(base, seeds)
    engine.anneal(prepared, base, betas[:2], visible, seeds, 1)  # compiles
    started = time.perf_counter()
    engine.anneal(prepared, base, betas, visible, seeds, 1)
    return time.perf_counter() - started
