"""Where chains begin."""

from __future__ import annotations

import numpy as np
import pytest

from model_core import randomness
from service.starts import noise


@pytest.mark.parametrize(("num_chains", "num_visible"), [(1, 784), (3, 783), (2, 1)])
def test_a_start_is_the_noise_that_the_chains_are_defined_by(num_chains: int, num_visible: int) -> None:
    seeds = randomness.chain_seeds(7, num_chains)
    found = noise(seeds, num_visible)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, randomness.noise(seeds, num_visible))
