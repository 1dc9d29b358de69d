"""Scores of samples on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from model_core.quality import (
    class_changes,
    class_histogram,
    feature_error,
    hamming_distances,
    largest_deviation,
    nearest_neighbour_accuracy,
    nearest_rows,
)


def flips(num_rows: int, probs: float | np.ndarray, seed: int, num_visible: int = 30) -> np.ndarray:
    return (np.random.default_rng(seed).random((num_rows, num_visible)) < probs).astype(np.uint8)


@pytest.mark.parametrize("num_visible", [4, 30, 300])  # 4 pixels: nearly every row has many equal neighbours
def test_two_draws_of_one_distribution_cannot_be_told_apart(num_visible: int) -> None:
    score = nearest_neighbour_accuracy(flips(1_500, 0.3, 1, num_visible), flips(1_500, 0.3, 2, num_visible))
    # Votes of mutual neighbours go together, so their sum varies by up to sqrt(2) more than `error` says.
    assert abs(score.accuracy - 0.5) < 5 * np.sqrt(2) * score.error


def test_taking_the_first_of_equals_would_be_wrong() -> None:
    """All rows equal: nobody can tell, and the score says 0.5 up to the row itself that is left out."""
    score = nearest_neighbour_accuracy(np.zeros((50, 8)), np.zeros((50, 8)))
    assert score.accuracy == pytest.approx(49 / 99)


def test_distant_sets_are_told_apart() -> None:
    score = nearest_neighbour_accuracy(flips(400, 0.05, 1), flips(400, 0.95, 2))
    assert (score.accuracy, score.sample_share, score.reference_share) == (1.0, 1.0, 1.0)


def test_copies_of_the_reference_are_below_one_half() -> None:
    reference = flips(400, 0.5, 1, 100)
    assert nearest_neighbour_accuracy(reference, reference).accuracy == 0.0


def test_one_mode_only_shows_in_the_sample_share() -> None:
    """Collapse: samples are each other's neighbours; the mixture's other half is not reached."""
    centres = flips(2, 0.5, 5, 200)
    noise = flips(1_000, 0.1, 6, 200)
    reference = centres[np.arange(1_000) % 2] ^ noise
    collapsed = centres[0] ^ flips(1_000, 0.1, 7, 200)
    assert nearest_neighbour_accuracy(collapsed, reference).accuracy > 0.6


def test_unequal_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        nearest_neighbour_accuracy(np.zeros((3, 4)), np.zeros((5, 4)))


def test_hamming_distances_count_pixels() -> None:
    left, right = flips(7, 0.5, 1), flips(1_203, 0.5, 2)
    expected = (left[:, None] != right[None]).sum(axis=2)
    np.testing.assert_array_equal(hamming_distances(left, right), expected)
    nearest, distances = nearest_rows(left, right)
    np.testing.assert_array_equal(distances, expected.min(axis=1))
    np.testing.assert_array_equal(expected[np.arange(7), nearest], expected.min(axis=1))


def test_feature_error_of_separable_and_of_useless_features() -> None:
    labels = np.arange(600) % 3
    features = np.eye(3)[labels] + np.random.default_rng(1).normal(0, 0.05, (600, 3))
    useless = np.random.default_rng(2).random((600, 3))
    assert feature_error(features[:300], labels[:300], features[300:], labels[300:]) == 0.0
    wrong = feature_error(useless[:300], labels[:300], useless[300:], labels[300:])
    assert abs(wrong - 2 / 3) < 5 * np.sqrt(2 / 9 / 300)


def test_histograms_and_their_largest_difference() -> None:
    histogram = class_histogram(np.array([[0, 1], [1, 3]]), num_classes=4)
    np.testing.assert_array_equal(histogram, [0.25, 0.5, 0.0, 0.25])
    assert largest_deviation(histogram, np.full(4, 0.25)) == pytest.approx(25.0)


def test_class_changes_are_per_thousand_steps() -> None:
    classes = np.array([[0, 7], [1, 7], [1, 7], [0, 7]])  # 2 changes in 3 moves of 2 chains
    assert class_changes(classes, steps_between=10) == pytest.approx(1_000 * 2 / 6 / 10)
    with pytest.raises(ValueError, match="at least 2 times"):
        class_changes(classes[:1])
