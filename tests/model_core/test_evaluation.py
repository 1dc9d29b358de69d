"""`rbm evaluate` end to end, the fast sweep against the plain one, and the words of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

from model_core import cli_evaluate, evaluation, tempering
from model_core.annealing import ReferenceAnnealer, base_log_z, base_rate_bias, numba_annealer, rounded_params
from model_core.cli_support import CliError
from model_core.exact import all_states, log_likelihood, log_partition, visible_distribution
from model_core.likelihood import Estimate, estimate_log_z_ais, estimate_log_z_reverse, mean_log_likelihood
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, checked_params

LIMIT = 5.0


@pytest.fixture
def small() -> RBMParams:
    """23 x 11: both layers end inside a register, and log Z is exact."""
    rng = np.random.default_rng(3)
    return checked_params(0.7 * rng.standard_normal((23, 11)), rng.standard_normal(23), rng.standard_normal(11))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempering, "_START_STEPS", 100)


@pytest.mark.parametrize("betas", [np.linspace(0, 1, 30), np.linspace(1, 0, 30)], ids=["up", "down"])
def test_numba_sweep_is_the_plain_one(small: RBMParams, betas: np.ndarray) -> None:
    """On the rounded model, with the same random numbers: a draw differs where float32 decides, so hardly ever."""
    rng, engine = np.random.default_rng(1), numba_annealer()
    prepared, seeds = engine.prepare(small), chain_seeds(5, 300)
    base = rng.normal(size=23).astype(np.float32)
    start = (rng.random((300, 23)) < 0.5).astype(np.uint8)
    fast, fast_states = engine.anneal(prepared, base, betas, start, seeds, 7)
    plain, plain_states = ReferenceAnnealer().anneal(rounded_params(prepared), base, betas, start, seeds, 7)
    same = (fast_states == plain_states).all(axis=1)
    assert same.mean() > 0.97
    np.testing.assert_allclose(np.median(np.abs(fast - plain)), 0, atol=1e-4)


def test_numba_sweep_is_unbiased(machine: RBMParams) -> None:
    base, betas, log_z = np.zeros(4, np.float32), np.linspace(0, 1, 20), log_partition(machine)
    forward = estimate_log_z_ais(machine, base_visible_bias=base, num_chains=20_000, betas=betas, seed=1)
    draws = np.random.default_rng(1).choice(16, 20_000, p=visible_distribution(machine))
    backward = estimate_log_z_reverse(machine, all_states(4)[draws], base_visible_bias=base, betas=betas, seed=1)
    assert abs(forward.log_z - log_z) < LIMIT * forward.error
    assert abs(backward.log_z - log_z) < LIMIT * backward.error


def test_coarse_rounding_is_corrected(machine: RBMParams) -> None:
    """An engine that rounds to multiples of 0.2 has another log Z; the last importance step brings it back."""

    class Coarse(ReferenceAnnealer):
        def prepare(self, params: RBMParams) -> RBMParams:
            return params._replace(weights=np.round(params.weights / np.float32(0.2)) * np.float32(0.2))

    coarse = Coarse().prepare(machine)
    base, betas = np.zeros(4, np.float32), np.linspace(0, 1, 20)
    estimate = estimate_log_z_ais(
        machine, base_visible_bias=base, num_chains=20_000, betas=betas, seed=1, engine=Coarse()
    )
    assert abs(log_partition(coarse) - log_partition(machine)) > 2 * LIMIT * estimate.error
    assert abs(estimate.log_z - log_partition(machine)) < LIMIT * estimate.error
    draws = np.random.default_rng(1).choice(16, 20_000, p=visible_distribution(machine))
    estimate = estimate_log_z_reverse(
        machine, all_states(4)[draws], base_visible_bias=base, betas=betas, seed=1, engine=Coarse()
    )
    assert abs(estimate.log_z - log_partition(machine)) < LIMIT * estimate.error


def test_all_estimates_agree_with_enumeration(small: RBMParams, quick: None) -> None:
    report = evaluation.measure_log_z(small, np.zeros(23, np.float32), num_chains=200, num_betas=300, seed=4)
    assert report.exact == log_partition(small)
    for value, error in (
        (report.ais.log_z, report.ais.error),
        (report.reverse.log_z, report.reverse.error),
        (report.combined, report.combined_error),
        (report.tempered.log_z, report.tempered.error),
    ):
        assert abs(value - report.exact) < 7 * error
    assert report.conservative == report.exact
    assert "exact" in report.verdict()


def make_report(ais: float, reverse: float, error: float = 0.05, size: float = 80.0) -> evaluation.LogZReport:
    weights = np.zeros(100)
    middle = 0.5 * (ais + reverse)
    tempered = tempering.Tempered(np.zeros((1, 1)), middle, 1.0, np.array([0.0, 1.0]), np.array([0.4]))
    return evaluation.LogZReport(
        Estimate(ais, error, size, weights), Estimate(reverse, error, size, weights), tempered, middle, error, None
    )


def test_words_follow_the_gap() -> None:
    good = make_report(100.0, 100.1)
    assert good.warnings() == [] and "believe" in good.verdict()
    flattering = make_report(100.0, 103.0)
    assert "flatter" in flattering.warnings()[0] and "Do not quote" in flattering.verdict()
    assert flattering.conservative == 103.0
    missing = make_report(103.0, 100.0)
    assert "miss part" in missing.warnings()[0] and missing.conservative == 103.0
    assert "uncertain" in make_report(100.0, 100.9, error=0.8).verdict()
    assert "effective sample size" in make_report(100.0, 100.1, size=2.0).warnings()[0]


def run_evaluate(*arguments: object) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(cli_evaluate.evaluate)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.exception


@pytest.fixture
def files(tmp_path: Path, small: RBMParams) -> tuple[Path, Path]:
    model, data = tmp_path / "small.safetensors", tmp_path / "images.npz"
    save_file(small._asdict(), model)
    np.savez(data, x_test=(np.random.default_rng(1).random((50, 23)) < 0.5).astype(np.uint8))
    return model, data


def test_json_has_the_promised_fields(files: tuple[Path, Path], small: RBMParams, quick: None) -> None:
    model, data = files
    status, output, _ = run_evaluate(model, "--data", data, "--chains", 100, "--betas", 200, "--json")
    assert status == 0
    figures = json.loads(output)
    assert {"model", "version", "num_chains", "num_betas", "log_z", "log_likelihood"} <= figures.keys()
    assert {"ais", "ais_error", "reverse", "exact"} <= figures["log_z"].keys()
    assert (figures["model"], figures["version"]) == ("small", None)
    assert (figures["num_chains"], figures["num_betas"]) == (100, 200)
    expected = log_likelihood(small, np.load(data)["x_test"]).mean()
    assert figures["log_likelihood"] == {"test": pytest.approx(expected, abs=1e-4), "train": None}


def test_text_says_what_to_believe(files: tuple[Path, Path], quick: None) -> None:
    model, data = files
    status, output, _ = run_evaluate(model, "--data", data, "--chains", 20, "--betas", 50)
    assert status == 0
    assert "gap between the directions" in output and "(exact)" in output


def test_wrong_kind_of_data_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x_test=np.zeros((3, 16), np.uint8))
    _, _, error = run_evaluate(files[0], "--data", wrong)
    assert isinstance(error, CliError) and "23 visible units" in str(error) and "16 pixels" in str(error)


def test_base_rate_on_mnist(mnist_folder: Path) -> None:
    """Independent pixels reach -205.8 nats on a stochastic draw of the test images, whoever computes it."""
    judged = cli_evaluate.load_judged("mnist", mnist_folder, seed=0)
    base = base_rate_bias(judged.pixel_means)
    params = checked_params(np.zeros((784, 1)), base, np.zeros(1))
    assert mean_log_likelihood(params, judged.test, base_log_z(base, 1)) == pytest.approx(-205.8, abs=0.5)
