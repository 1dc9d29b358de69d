"""0 and 1 drawn with the right odds, and batches that depend on nothing but the seed and the update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_core.data import (
    Batches,
    binarize,
    epoch_order,
    pixel_probs,
)
from tests.model_core.pictures import grey_images, rows


def test_pixel_probs() -> None:
    assert pixel_probs(np.array([0, 51, 255], np.uint8)).tolist() == np.array([0, 0.2, 1], np.float32).tolist()
    assert pixel_probs(np.array([0.25])).dtype == np.float32
    with pytest.raises(ValueError, match="int64"):
        pixel_probs(np.array([1]))


def test_the_share_of_ones_is_the_grey_value() -> None:
    num_draws = 20_000
    images = np.repeat(np.arange(256, dtype=np.uint8)[:, None], num_draws, axis=1)
    probs = np.arange(256) / 255
    shares = binarize(images, seed=11).mean(axis=1)
    assert shares[0] == 0 and shares[255] == 1, "black and white are never flipped"
    errors = np.sqrt(probs[1:-1] * (1 - probs[1:-1]) / num_draws)
    z = (shares[1:-1] - probs[1:-1]) / errors
    assert np.abs(z).max() < 6  # false alarm: 254 * 2e-9
    assert abs(np.square(z).sum() - 254) < 6 * np.sqrt(2 * 254)
    assert np.array_equal(binarize(images, "threshold")[:, 0], np.arange(256) >= 128)


def test_draws_are_keyed_by_seed_and_number_and_independent_of_each_other() -> None:
    grey = np.full((100, 784), 0.5, np.float32)
    draws = [binarize(grey, seed=seed, draw=draw) for seed in (0, 1, 2**64) for draw in (0, 1, 2**32, 2**62)]
    assert np.array_equal(draws[0], binarize(grey, seed=0, draw=0))
    for index, left in enumerate(draws):
        for right in draws[:index]:
            agreement = (left == right).mean()
            assert abs(agreement - 0.5) < 6 * 0.5 / np.sqrt(grey.size)
    with pytest.raises(ValueError, match="at least 0"):
        binarize(grey, seed=-1)


def test_an_epochs_order_is_a_permutation_keyed_by_seed_and_epoch() -> None:
    orders = [epoch_order(1000, epoch, seed) for epoch in range(3) for seed in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert len({*rows(*[order[None] for order in orders])}) == 9
    assert np.array_equal(orders[4], epoch_order(1000, 1, 1))


@pytest.mark.parametrize("binarisation", ["stochastic", "fixed", "threshold"])
def test_a_batch_is_a_function_of_seed_and_update(binarisation: Any) -> None:
    images = grey_images(50).reshape(50, 20)
    batches = Batches(images, 8, seed=5, binarisation=binarisation)
    assert batches.num_batches == 6
    through = [batches.at(update) for update in range(20)]
    for update in (19, 3, 12, 0):  # as after a resume, in any order
        fresh = Batches(images, 8, seed=5, binarisation=binarisation).at(update)
        assert np.array_equal(fresh, through[update]) and fresh.dtype == np.uint8 and fresh.shape == (8, 20)
    # Within an epoch every image comes at most once; what becomes of it depends on the kind of binarisation.
    order = epoch_order(50, 1, 5)[:8]
    if binarisation == "threshold":
        assert np.array_equal(through[6], images[order] >= 128)
    seen: dict[int, list[bytes]] = {}
    for update in range(12):
        for image, bits in zip(epoch_order(50, update // 6, 5)[(update % 6) * 8 :], through[update], strict=False):
            seen.setdefault(int(image), []).append(bits.tobytes())
    redrawn = [len({*bits}) > 1 for bits in seen.values() if len(bits) == 2]
    assert all(redrawn) if binarisation == "stochastic" else not any(redrawn)


def test_batches_larger_than_the_set_are_the_set() -> None:
    assert Batches(grey_images(5).reshape(5, 20), 100, seed=0).at(3).shape == (5, 20)
    with pytest.raises(ValueError, match="batch_size"):
        Batches(grey_images(5).reshape(5, 20), 0, seed=0)
