"""The model that ships: what its card says of it holds, and the engine's rounding does not touch it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_core.annealing import base_rate_bias, standard_betas
from model_core.data import Dataset, binarize, load_dataset, pixel_probs
from model_core.engine_numba import NumbaEngine, rounded_params
from model_core.equilibrium import LADDER_FILE, Ladder, parse_ladder
from model_core.likelihood import estimate_log_z_ais, estimate_log_z_reverse, log_mean_exp, mean_log_likelihood
from model_core.model_store import Model, load_extra, load_model
from model_core.rbm import free_energy
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(ROOT / "checkpoints" / "mnist")


@pytest.fixture(scope="module")
def ladder(model: Model) -> Ladder:
    return parse_ladder(load_extra(model, LADDER_FILE), model.params.num_visible, model.params.num_hidden)


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> Dataset:
    return load_dataset("mnist", data_dir=mnist_folder)


def test_it_is_the_model_of_the_recommended_preset(model: Model) -> None:
    assert model.params.weights.shape == (784, 500)
    assert model.manifest["training"]["preset"] == "recommended"
    assert model.manifest["dataset"]["split"]["train"] == 60_000


def test_rounding_moves_the_test_likelihood_by_less_than_two_hundredths(
    model: Model, ladder: Ladder, mnist: Dataset
) -> None:
    params = model.params
    rounded = rounded_params(NumbaEngine().prepare(params))
    test = binarize(mnist.test[:5_000], seed=11)
    moved = (free_energy(rounded, test) - free_energy(params, test)).mean()
    # log Z(rounded) - log Z(float) is the log of the mean of exp(F - F_rounded) over samples of the float model.
    members = ladder.members
    log_z_moved = log_mean_exp(free_energy(params, members) - free_energy(rounded, members))
    assert abs(moved + log_z_moved) < 0.02


def test_both_directions_agree_with_the_card(model: Model, ladder: Ladder, mnist: Dataset) -> None:
    base = base_rate_bias(pixel_probs(mnist.train).mean(axis=0))
    betas = standard_betas(4_000)
    ais = estimate_log_z_ais(model.params, base_visible_bias=base, num_chains=60, betas=betas, seed=21)
    members = ladder.members[:60]
    reverse = estimate_log_z_reverse(model.params, members, base_visible_bias=base, betas=betas, seed=22)
    likelihoods = model.manifest["metrics"]["log_likelihood_ais"], model.manifest["metrics"]["log_likelihood_reverse"]
    test = binarize(mnist.test, seed=12)
    for estimate, card in zip((ais, reverse), likelihoods, strict=True):
        found = mean_log_likelihood(model.params, test, estimate.log_z)
        assert abs(found - card["test"]) < 0.8  # 60 chains: an error of about 0.15 nat, and as much bias
        assert found > -84.6


def test_percentiles_are_those_of_held_out_digits(model: Model, mnist: Dataset) -> None:
    energies = free_energy(model.params, binarize(mnist.test, seed=13))
    ranks = np.interp(energies, model.manifest["free_energy_percentiles"], np.arange(101))
    assert abs(ranks.mean() - 50) < 5 * 29 / 100  # uniform ranks: standard deviation 29, 10,000 images
