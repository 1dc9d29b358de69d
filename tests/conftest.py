"""What all tests share: an enumerable machine, and the way to data that only some computers have."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from model_core.rbm import RBMParams, checked_params

ROOT = Path(__file__).resolve().parent.parent
_DATA_FOLDERS = (os.environ.get("RBM_DATA_DIR"), ROOT.parent / "shared" / "data" / "mnist")


@pytest.fixture(scope="session")
def machine() -> RBMParams:
    """A square 4x4 machine with strong weights: broken samplers show on it (see test_stationarity)."""
    rng = np.random.default_rng(1)
    return checked_params(2.0 * rng.standard_normal((4, 4)), rng.standard_normal(4), rng.standard_normal(4))


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder of MNIST's four IDX files; skips where they are not at hand (CI fails on that skip)."""
    for folder in _DATA_FOLDERS:
        if folder and (Path(folder) / "t10k-images-idx3-ubyte.gz").exists():
            return Path(folder)
    pytest.skip("real MNIST is not at hand: set RBM_DATA_DIR to the folder of its four IDX files")


@pytest.fixture(scope="session")
def shared_data(mnist_folder: Path) -> Path:
    """The folder above MNIST's, which may hold `hwd1000.npz` and `binarized_mnist.npz`."""
    return mnist_folder.parent
