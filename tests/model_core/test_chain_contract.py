"""What every engine promises about a chain, bit by bit: see `chains`, and `reference` for the plain NumPy step.

A state equals the reference's unless a uniform number lies within `ROUNDING` of its probability; such chains are left
out (a few in 10,000), and a test fails if they are not few.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model_core.chains import Engine, get_engine
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams, checked_params, sigmoid
from tests.model_core.reference import make_chains, probs, run_chains, run_reference, sampled_params

ROUNDING = 1e-5
NUM_CHAINS = 8


def machine_of(num_visible: int, num_hidden: int) -> RBMParams:
    rng = np.random.default_rng([num_visible, num_hidden])
    scale = 3.0 / np.sqrt(num_visible + num_hidden)
    weights = scale * rng.standard_normal((num_visible, num_hidden))
    return checked_params(weights, rng.standard_normal(num_visible), rng.standard_normal(num_hidden))


@pytest.fixture(scope="module")
def odd_machine() -> RBMParams:
    """33 x 17: no width is a multiple of anything that a processor likes."""
    return machine_of(33, 17)


SEEDS = chain_seeds(7, NUM_CHAINS)
START = noise(SEEDS, 33)


@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (33, 3), (33, 1), (1, 33), (70, 40)], ids=str)
def test_chains_equal_the_reference(engine: Engine, shape: tuple[int, int]) -> None:
    params, seeds = machine_of(*shape), chain_seeds(3, 128)
    start = noise(seeds, shape[0])
    expected = run_reference(sampled_params(engine, params), start, seeds, 10)
    states, visible_probs = run_chains(params, start, num_steps=10, seeds=seeds, return_probs=True, engine=engine)
    clear = expected.margin > ROUNDING
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(states[clear], expected.visible[clear])
    np.testing.assert_allclose(visible_probs[clear], expected.visible_probs[clear], atol=1e-5)
    assert visible_probs.dtype == np.float32


@pytest.mark.parametrize("temperature", [0.05, 0.7, 20.0])
def test_temperature_divides_every_logit(engine: Engine, odd_machine: RBMParams, temperature: float) -> None:
    seeds = chain_seeds(4, 128)
    start, options = noise(seeds, 33), {"temperature": temperature}
    expected = run_reference(sampled_params(engine, odd_machine), start, seeds, 5, **options)
    states, visible_probs = run_chains(
        odd_machine, start, num_steps=5, seeds=seeds, return_probs=True, engine=engine, **options
    )
    clear = expected.margin > ROUNDING
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(states[clear], expected.visible[clear])
    np.testing.assert_allclose(visible_probs[clear], expected.visible_probs[clear], atol=2e-5)


def test_slices_equal_one_run(engine: Engine, odd_machine: RBMParams) -> None:
    options = {"seeds": SEEDS, "return_probs": True, "engine": engine, "temperature": 0.8}
    whole, whole_probs = run_chains(odd_machine, START, num_steps=12, **options)
    visible = START
    for first_step, num_steps in ((0, 5), (5, 0), (5, 1), (6, 6)):
        sliced = run_chains(odd_machine, visible, num_steps=num_steps, first_step=first_step, **options)
        visible, sliced_probs = sliced
    np.testing.assert_array_equal(visible, whole)
    np.testing.assert_array_equal(sliced_probs, whole_probs)


def test_the_order_of_chains_does_not_matter(engine: Engine, odd_machine: RBMParams) -> None:
    order = np.random.default_rng(0).permutation(NUM_CHAINS)
    expected = run_chains(odd_machine, START, num_steps=20, seeds=SEEDS, engine=engine)
    received = run_chains(odd_machine, START[order], num_steps=20, seeds=SEEDS[order], engine=engine)
    np.testing.assert_array_equal(received, expected[order])


def test_a_chain_is_the_same_alone_and_among_others(engine: Engine, odd_machine: RBMParams) -> None:
    """Bit for bit on Numba. On TensorFlow bit for bit in a batch of the same bucket; else only rounding may differ."""
    seeds = chain_seeds(7, 100)
    together, together_probs = run_chains(
        odd_machine, noise(seeds, 33), num_steps=20, seeds=seeds, return_probs=True, engine=engine
    )
    clear = run_reference(sampled_params(engine, odd_machine), noise(seeds, 33), seeds, 20).margin > ROUNDING
    exact = engine.name == "numba"
    for first, last in ((0, 1), (1, 2), (0, 8), (90, 97), (0, 99)):
        part = slice(first, last)
        alone, alone_probs = run_chains(
            odd_machine, noise(seeds, 33)[part], num_steps=20, seeds=seeds[part], return_probs=True, engine=engine
        )
        same = np.ones(last - first, bool) if exact else clear[part]
        np.testing.assert_array_equal(alone[same], together[part][same])
        same_bucket = last - first > 64
        tolerance = 0.0 if exact or same_bucket else 1e-6
        np.testing.assert_allclose(alone_probs[same], together_probs[part][same], rtol=0, atol=tolerance)


def test_no_steps_change_nothing(engine: Engine, odd_machine: RBMParams) -> None:
    states, visible_probs = run_chains(
        odd_machine, START, num_steps=0, seeds=SEEDS, return_probs=True, engine=engine, temperature=0.1
    )
    np.testing.assert_array_equal(states, START)
    np.testing.assert_array_equal(visible_probs, START)


def test_no_chains_are_no_chains(engine: Engine, odd_machine: RBMParams) -> None:
    states, visible_probs = run_chains(
        odd_machine, START[:0], num_steps=3, seeds=SEEDS[:0], return_probs=True, engine=engine
    )
    assert states.shape == visible_probs.shape == (0, 33)


def test_every_chain_has_options_of_its_own(engine: Engine, odd_machine: RBMParams) -> None:
    rng = np.random.default_rng(5)
    num_steps, first_step = np.array([0, 1, 2, 3, 5, 8, 13, 21]), np.array([0, 4, 2**40, 1, 0, 7, 0, 0])
    temperature, clamp = rng.uniform(0.3, 3.0, NUM_CHAINS).astype(np.float32), rng.random((NUM_CHAINS, 33)) < 0.3
    options = {"num_steps": num_steps, "first_step": first_step, "temperature": temperature, "clamp": clamp}
    prepared = engine.prepare(odd_machine)
    states, visible_probs = engine.advance(prepared, make_chains(odd_machine, START, seeds=SEEDS, **options))
    assert (states.dtype, visible_probs.dtype) == (np.uint8, np.float32)
    for chain in range(NUM_CHAINS):
        own = {name: value[chain] for name, value in options.items()}
        # A batch of the same size, so that TensorFlow too must give the same bits.
        batch = make_chains(odd_machine, np.tile(START[chain], (8, 1)), seeds=np.repeat(SEEDS[chain], 8), **own)
        alone, alone_probs = engine.advance(prepared, batch)
        np.testing.assert_array_equal(alone[0], states[chain])
        np.testing.assert_array_equal(alone_probs[0], visible_probs[chain])


def test_the_input_is_left_alone(engine: Engine, odd_machine: RBMParams) -> None:
    start = START.copy()
    for mode in ("gibbs", "mean_field"):
        run_chains(odd_machine, start, num_steps=3, seeds=SEEDS, engine=engine, mode=mode)
        np.testing.assert_array_equal(start, START)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_the_dtype_of_the_states_is_kept(engine: Engine, odd_machine: RBMParams, dtype: type) -> None:
    expected = run_chains(odd_machine, START, num_steps=3, seeds=SEEDS, engine=engine)
    received = run_chains(odd_machine, START.astype(dtype), num_steps=3, seeds=SEEDS, engine=engine)
    assert received.dtype == dtype and set(np.unique(received)) == {0, 1}
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("mode", ["gibbs", "mean_field"])
@pytest.mark.parametrize("whole_batch", [True, False])
def test_clamped_pixels_never_change(engine: Engine, odd_machine: RBMParams, mode: str, whole_batch: bool) -> None:
    clamp = np.random.default_rng(8).random((NUM_CHAINS, 33) if whole_batch else 33) < 0.5
    kept = np.broadcast_to(clamp, START.shape)
    options = {"seeds": SEEDS, "clamp": clamp, "engine": engine, "mode": mode}
    for num_steps in (1, 2, 30):
        states = run_chains(odd_machine, START, num_steps=num_steps, **options)
        np.testing.assert_array_equal(states[kept], START[kept])
    assert (states != START).any()
    everything = run_chains(odd_machine, START, num_steps=5, **(options | {"clamp": np.ones(33, bool)}))
    np.testing.assert_array_equal(everything, START)


def test_clamped_chains_equal_the_reference(engine: Engine, odd_machine: RBMParams) -> None:
    seeds, clamp = chain_seeds(4, 128), np.arange(33) < 20
    start = noise(seeds, 33)
    expected = run_reference(sampled_params(engine, odd_machine), start, seeds, 10, clamp=clamp)
    clear = expected.margin > ROUNDING
    received = run_chains(odd_machine, start, num_steps=10, seeds=seeds, clamp=clamp, engine=engine)
    np.testing.assert_array_equal(received[clear], expected.visible[clear])


def test_the_same_seed_gives_the_same_chain_and_another_another(engine: Engine, odd_machine: RBMParams) -> None:
    same_start = np.repeat(START[:1], NUM_CHAINS, axis=0)
    first, again = (run_chains(odd_machine, same_start, num_steps=3, seeds=SEEDS, engine=engine) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) == NUM_CHAINS
    later = run_chains(odd_machine, same_start, num_steps=3, first_step=3, seeds=SEEDS, engine=engine)
    assert (later != first).any(axis=1).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_mean_field_equals_plain_numpy(engine: Engine, odd_machine: RBMParams, temperature: float) -> None:
    start = np.random.default_rng(2).random((NUM_CHAINS, 33)).astype(np.float32)
    clamp = np.arange(33) % 5 == 0
    expected = start.astype(np.float64)
    for _ in range(6):
        hidden = probs((expected @ odd_machine.weights + odd_machine.hidden_bias) / temperature)
        moved = probs((hidden @ odd_machine.weights.T + odd_machine.visible_bias) / temperature)
        expected = np.where(clamp, expected, moved)
    received, same = run_chains(
        odd_machine, start, num_steps=6, seeds=SEEDS, temperature=temperature, clamp=clamp, mode="mean_field",
        return_probs=True, engine=engine,
    )  # fmt: skip
    np.testing.assert_allclose(received, expected, atol=1e-4)
    np.testing.assert_array_equal(received, same)
    assert received.dtype == np.float32


def test_mean_field_takes_no_notice_of_seeds(engine: Engine, odd_machine: RBMParams) -> None:
    first, second = (
        run_chains(odd_machine, START, num_steps=4, seeds=seeds, mode="mean_field", engine=engine)
        for seeds in (SEEDS, SEEDS[::-1])
    )
    np.testing.assert_array_equal(first, second)
    one_step = run_chains(odd_machine, START, num_steps=1, seeds=SEEDS, mode="mean_field", engine=engine)
    hidden = sigmoid(START.astype(np.float32) @ odd_machine.weights + odd_machine.hidden_bias)
    expected = sigmoid(hidden @ odd_machine.weights.T + odd_machine.visible_bias)
    np.testing.assert_allclose(one_step, expected, atol=1e-5)


def test_two_threads_at_once_get_the_same_bits(engine: Engine, odd_machine: RBMParams) -> None:
    prepared = engine.prepare(odd_machine)
    batches = [make_chains(odd_machine, START, seeds=chain_seeds(seed, 8), num_steps=200) for seed in range(8)]
    expected = [engine.advance(prepared, batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        received = list(pool.map(lambda batch: engine.advance(prepared, batch)[0], batches * 4))
    for states, wanted in zip(received, expected * 4, strict=True):
        np.testing.assert_array_equal(states, wanted)


BAD_ARGUMENTS = {
    "flat": ({"visible": START[0]}, r"`visible` must be \[chains, 33\]. Received shape \(33,\)"),
    "narrow": ({"visible": START[:, :32]}, r"`visible` must be \[chains, 33\]. Received shape \(8, 32\)"),
    "grey": ({"visible": START * 0.5}, "only 0 and 1; binarise"),
    "nan": ({"visible": np.full((8, 33), np.nan)}, "only 0 and 1"),
    "nan in mean field": ({"visible": np.full((8, 33), np.nan), "mode": "mean_field"}, "between 0 and 1"),
    "seeds": ({"seeds": SEEDS[:3]}, r"`seeds` must hold one integer a chain, shape \(8,\). Received \(3,\)"),
    "steps": ({"num_steps": -1}, "must not be negative. Received: -1"),
    "first step": ({"first_step": -2}, "must not be negative. Received: .*-2"),
    "cold": ({"temperature": 0.0}, "`temperature` must be above 0. Received: 0.0"),
    "nan temperature": ({"temperature": np.nan}, "`temperature` must be above 0"),
    "clamp": ({"clamp": np.ones(32, bool)}, r"`clamp` must be a mask \[33\] .* Received shape \(32,\)"),
    "mode": ({"mode": "metropolis"}, "`mode` must be .* Received: 'metropolis'"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_say_what_is_wrong(engine: Engine, odd_machine: RBMParams, name: str) -> None:
    changes, message = BAD_ARGUMENTS[name]
    arguments = {"visible": START, "num_steps": 1, "seeds": SEEDS, "engine": engine} | changes
    with pytest.raises(ValueError, match=message):
        run_chains(odd_machine, **arguments)


def test_an_unknown_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"`engine` must be .* Received: 'abacus'"):
        get_engine("abacus")
    monkeypatch.setenv("RBM_ENGINE", "slide rule")
    with pytest.raises(ValueError, match="Received: 'slide rule'"):
        get_engine()
