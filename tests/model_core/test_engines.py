"""Where engines could go wrong: extreme noise, TensorFlow programs that multiply, bits that depend on a machine."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from model_core import engine_tensorflow
from model_core.chains import Engine
from model_core.engine_numba import NumbaEngine
from model_core.engine_tensorflow import TensorFlowEngine, num_traces
from model_core.randomness import GAMMA, HIDDEN_LAYER, VISIBLE_LAYER, chain_seeds, noise, random_words
from model_core.rbm import RBMParams
from tests.conftest import ROOT
from tests.model_core.chain_hash import hash_of_chains
from tests.model_core.reference import make_chains, make_params, run_chains


def other_machine(seed: int) -> RBMParams:
    rng = np.random.default_rng(seed)
    return make_params(rng.standard_normal((19, 11)), rng.standard_normal(19), rng.standard_normal(11))


def unmix(word: int) -> int:
    """The inverse of `randomness.mix`: which state becomes this word."""
    word ^= word >> 31 ^ word >> 62
    word = word * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    word ^= word >> 27 ^ word >> 54
    word = word * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return word ^ word >> 30 ^ word >> 60


def seed_that_draws(word: int, layer: int) -> int:
    """The seed of a chain whose first two units of `layer` in step 0 get this 64-bit word."""
    key = (unmix(word) - GAMMA) % 2**64
    return (unmix(key) - (layer + 1) * GAMMA) % 2**64


@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_extreme_logits_decide_alone_even_against_extreme_noise(engine: Engine, size: float) -> None:
    """u may be as near to 0 or 1 as 32 bits allow: a unit with logit 100 is on, one with -100 is off."""
    extremes = [(word, layer) for word in (0, 2**64 - 1) for layer in (HIDDEN_LAYER, VISIBLE_LAYER)]
    seeds = np.array([seed_that_draws(*extreme) for extreme in extremes] + [0] * 4, np.uint64)
    for seed, (word, layer) in zip(seeds, extremes, strict=False):
        assert random_words(seed[None], 0, layer, 2).tolist() == [[word % 2**32] * 2]
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    # Hidden unit 0 is on and unit 1 off whatever v; visible unit 0 is on and 1 off because of hidden unit 0.
    weights = np.zeros((4, 4))
    weights[:2, 0] = size * signs[:2]
    params = make_params(weights, [0, 0, size, -size], 4 * size * signs)
    start = np.tile(np.array([0, 1, 0, 1], np.uint8), (8, 1))
    with np.errstate(all="raise", under="ignore"):
        states, visible_probs = run_chains(params, start, num_steps=1, seeds=seeds, return_probs=True, engine=engine)
    np.testing.assert_array_equal(states, np.tile([1, 0, 1, 0], (8, 1)))
    np.testing.assert_allclose(visible_probs, np.tile([1, 0, 1, 0], (8, 1)), atol=1e-6)


def test_tensorflow_traces_one_program_a_bucket() -> None:
    """100 calls with as many step counts and batch sizes up to 64, other models, with and without clamping."""
    engine, before = TensorFlowEngine(), num_traces()
    rng = np.random.default_rng(0)
    for call in range(100):
        params, num_chains = other_machine(call % 5), int(rng.integers(1, 65))
        seeds, clamp = chain_seeds(call, num_chains), None if call % 2 else rng.random(19) < 0.5
        options = {"num_steps": call, "first_step": 3 * call, "temperature": 0.5 + call / 50, "clamp": clamp}
        engine.advance(engine.prepare(params), make_chains(params, noise(seeds, 19), seeds=seeds, **options))
    assert num_traces() - before <= 7  # 1, 2, 4, 8, 16, 32, 64


@pytest.mark.parametrize("program", ["_gibbs", "_mean_field"])
def test_tensorflow_programs_have_no_part_that_is_compiled_for_each_value(program: str) -> None:
    """XLA wants the ends of a Range while it compiles: a loop over tf.range is compiled for each number of steps."""
    params, engine, seeds = other_machine(0), TensorFlowEngine(), chain_seeds(0, 4)
    mode = "gibbs" if program == "_gibbs" else "mean_field"
    batch = make_chains(params, noise(seeds, 19), seeds=seeds, num_steps=3, clamp=np.zeros(19, bool), mode=mode)
    traced = getattr(engine_tensorflow, program).get_concrete_function(engine.prepare(params), batch)
    operations = {node.op for node in traced.graph.as_graph_def().node}
    assert "Range" not in operations and operations & {"While", "StatelessWhile"}


@pytest.mark.parametrize("num_chains", [1, 2, 5, 64])
def test_numba_gives_the_same_bits_on_any_number_of_threads(num_chains: int) -> None:
    params, seeds = other_machine(0), chain_seeds(1, num_chains)
    batch = make_chains(params, noise(seeds, 19), seeds=seeds, num_steps=50)
    engines = [NumbaEngine(num_threads, worth_sharing=0) for num_threads in (1, 2, 3, 7)]
    states = [engine.advance(engine.prepare(params), batch) for engine in engines]
    for received in states[1:]:
        np.testing.assert_array_equal(received[0], states[0][0])
        np.testing.assert_array_equal(received[1], states[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "features", [{}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}], ids=["same", "none"]
)
def test_numba_gives_the_same_bits_in_another_process(features: dict[str, str]) -> None:
    """Also where the processor has no vector instructions beyond the oldest ones."""
    command = [sys.executable, "-m", "tests.model_core.chain_hash"]
    environment = os.environ | features | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    other = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hash_of_chains()
