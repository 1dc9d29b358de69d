"""Monitoring: numbers against enumeration, event files read back with TensorBoard's own reader, the progress lines."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_core.monitoring import (
    estimate_pseudo_likelihood,
    free_energy_gap,
    hidden_health,
    reconstruction_error,
    update_ratio,
)
from model_core.rbm import RBMParams, checked_params, free_energy


def all_states(num_units: int) -> np.ndarray:
    return np.array(list(itertools.product((0, 1), repeat=num_units)), np.uint8)


def enumerated_pseudo_likelihood(params: RBMParams, visible: np.ndarray) -> float:
    """From the 16 probabilities of a 4x4 machine: log p(v) - log(p(v) + p(v with bit i flipped)), summed over i."""
    probs = {tuple(state): np.exp(-free_energy(params, state[None])[0]) for state in all_states(params.num_visible)}
    total = 0.0
    for state in visible:
        for bit in range(params.num_visible):
            flipped = state.copy()
            flipped[bit] = 1 - flipped[bit]
            here = probs[tuple(state)]
            total += np.log(here / (here + probs[tuple(flipped)]))
    return total / len(visible)


def test_pseudo_likelihood_of_all_pixels_is_exact(machine: RBMParams) -> None:
    states = all_states(4)
    expected = enumerated_pseudo_likelihood(machine, states)
    for num_pixels in (4, 9):
        assert estimate_pseudo_likelihood(machine, states, seed=0, num_pixels=num_pixels) == pytest.approx(
            expected, 1e-6
        )


@pytest.mark.parametrize("num_pixels", [1, 3])
def test_pseudo_likelihood_is_unbiased(machine: RBMParams, num_pixels: int) -> None:
    """|z| < 5 over 2,000 seeds: a false alarm in about 2 of a million runs."""
    states = all_states(4)
    draws = [estimate_pseudo_likelihood(machine, states, seed=seed, num_pixels=num_pixels) for seed in range(2000)]
    error = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert error > 0
    assert abs(np.mean(draws) - enumerated_pseudo_likelihood(machine, states)) < 5 * error


def test_pseudo_likelihood_does_not_depend_on_tiles(machine: RBMParams, monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.tile(all_states(4), (3, 1))
    whole = estimate_pseudo_likelihood(machine, states, seed=1, num_pixels=2)
    monkeypatch.setattr("model_core.monitoring._TILE", 20)  # 5 rows at once
    assert estimate_pseudo_likelihood(machine, states, seed=1, num_pixels=2) == pytest.approx(whole, 1e-9)


def test_pseudo_likelihood_refuses_grey_images(machine: RBMParams) -> None:
    with pytest.raises(ValueError, match="only 0 and 1"):
        estimate_pseudo_likelihood(machine, np.full((2, 4), 0.5), seed=0)
    with pytest.raises(ValueError, match="Received: 0"):
        estimate_pseudo_likelihood(machine, all_states(4), seed=0, num_pixels=0)


def test_reconstruction_error_of_a_known_machine() -> None:
    # Without weights the reconstruction is sigmoid(bias) whatever the image: 0.5 everywhere.
    flat = checked_params(np.zeros((3, 2)), np.zeros(3), np.zeros(2))
    assert reconstruction_error(flat, np.array([[0, 1, 1]])) == pytest.approx(0.25)
    certain = checked_params(np.zeros((3, 2)), np.array([-50, 50, 50]), np.zeros(2))
    assert reconstruction_error(certain, np.array([[0, 1, 1]])) == pytest.approx(0, abs=1e-9)


def test_free_energy_gap_is_a_difference_of_log_likelihoods(machine: RBMParams) -> None:
    states = all_states(4)
    log_probs = -free_energy(machine, states)
    training, held_out = states[:5], states[5:]
    expected = log_probs[:5].mean() - log_probs[5:].mean()  # log Z cancels; positive where training is likelier
    assert free_energy_gap(machine, training, held_out) == pytest.approx(expected, 1e-9)


def test_hidden_health_counts_stuck_units() -> None:
    params = checked_params(np.zeros((2, 4)), np.zeros(2), np.array([-20, -20, 20, 0]))
    health = hidden_health(params, np.array([[0, 1], [1, 1]]))
    assert (health.num_dead, health.num_saturated) == (2, 1)
    assert health.mean_activity == pytest.approx((1 + 0.5) / 4, abs=1e-6)


def test_update_ratio() -> None:
    before = checked_params(np.full((2, 2), 2.0), np.zeros(2), np.zeros(2))
    after = checked_params(np.full((2, 2), 2.002), np.ones(2), np.zeros(2))
    ratio = update_ratio(before, after)
    assert ratio.weights == pytest.approx(1e-3, rel=1e-3)
    assert (ratio.visible_bias, ratio.hidden_bias) == (np.inf, 0.0)


def read_back(folder: Path) -> object:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> object:
    """What TensorBoard reads of a small run in two files, the second of them a run that was resumed."""
    from model_core.monitoring_events import EventWriter

    folder = tmp_path_factory.mktemp("events")
    rng = np.random.default_rng(0)
    before = checked_params(rng.standard_normal((4, 3)), np.zeros(4), np.ones(3))
    after = before._replace(weights=before.weights + 0.5)
    with EventWriter(folder) as writer:
        writer.scalars({"gap": 0.25, "reconstruction error": 0.04}, 10)
        writer.parameters(before, None, 10)
    with EventWriter(folder) as writer:
        writer.scalars({"gap": 0.5}, 20)
        writer.parameters(after, before, 20)
        writer.filters(after, (2, 2), 20)
        writer.images("chains", rng.random((5, 2, 2)), 20)
        writer.image("colour", np.zeros((3, 4, 3), np.uint8), 20)
    return read_back(folder)


def test_scalars_read_back(events) -> None:  # type: ignore[no-untyped-def]
    assert [(point.step, point.value) for point in events.Scalars("gap")] == [(10, 0.25), (20, 0.5)]
    assert events.Scalars("reconstruction error")[0].value == pytest.approx(0.04)


def test_histograms_read_back(events) -> None:  # type: ignore[no-untyped-def]
    names = ("weights", "visible_bias", "hidden_bias")
    assert set(events.Tags()["histograms"]) == {
        f"{kind}/{name}" for kind in ("parameters", "updates") for name in names
    }
    weights = events.Histograms("parameters/weights")[0].histogram_value
    assert weights.num == 12 and sum(weights.bucket) == 12
    update = events.Histograms("updates/weights")[0].histogram_value
    assert update.sum == pytest.approx(6.0, rel=1e-6)


def test_images_read_back(events) -> None:  # type: ignore[no-untyped-def]
    filters = events.Images("filters")[0]
    assert (filters.height, filters.width) == (5, 5)  # three 2x2 filters in two columns, lines between them
    picture = np.asarray(Image.open(io.BytesIO(events.Images("chains")[0].encoded_image_string)))
    assert picture.shape == (5, 8)
    assert Image.open(io.BytesIO(events.Images("colour")[0].encoded_image_string)).mode == "RGB"


def test_a_diverged_run_is_named() -> None:
    from model_core.monitoring_events import histogram_message

    with pytest.raises(ValueError, match="diverged"):
        histogram_message(np.array([1.0, np.nan]))
    constant = histogram_message(np.zeros(7))  # untrained biases
    assert sum(constant.bucket) == 7


def test_event_files_need_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from model_core.monitoring_events import EventWriter\n"
        f"with EventWriter({str(tmp_path)!r}) as w: w.scalars({{'a': 1.0}}, 1)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_progress_in_a_log_file_is_plain_lines() -> None:
    from model_core.monitoring_progress import TrainingProgress

    stream = io.StringIO()
    with TrainingProgress(100, images_per_update=10, first_update=40, stream=stream) as progress:
        progress.advance(updates=10)
        progress.metrics(3, {"reconstruction error": 0.04123, "gap": 0.5})
        assert progress.images_per_second() > 0 and progress.seconds_left() > 0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("update 50/100, ")
    assert "images/s" in lines[0] and "left" in lines[0]
    assert lines[0].endswith("epoch 3: reconstruction error 0.04123, gap 0.5")
    assert "\x1b" not in stream.getvalue()


def _all_of(terminal: int) -> str:
    """What was written to a terminal whose other end is closed; a read gives only a part."""
    parts = []
    with contextlib.suppress(OSError):  # Linux says EIO at the end
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_progress_on_a_terminal_is_a_bar() -> None:
    from model_core.monitoring_progress import TrainingProgress

    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal, TrainingProgress(10, images_per_update=5, stream=terminal) as progress:
        progress.advance(updates=10)
        progress.metrics(1, {"gap": 0.5})
    shown = _all_of(reader)
    assert "10/10" in shown and "epoch 1: gap 0.5" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(9, "9 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")]
)
def test_format_seconds(seconds: float, text: str) -> None:
    from model_core.monitoring_progress import format_seconds

    assert format_seconds(seconds) == text
