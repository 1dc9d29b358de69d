"""How good samples and features are, beside the log-likelihood: can they be told from data, do they visit every class?

Scores are for draws of the model (`tempering.equilibrium_samples`) or for chains from noise: say which. The
deterministic mean-field pictures are not samples, and none of these scores means anything for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_ROWS_AT_ONCE = 1_000
_LEAST_SCALE = 0.03  # of a feature in 0..1


class TwoSample(NamedTuple):
    """Nearest-neighbour two-sample accuracy (adversarial accuracy)."""

    accuracy: float  # 0.5: indistinguishable; towards 1: told apart; below 0.5: copies of the reference
    error: float  # standard error, as if the rows' votes were independent
    sample_share: float  # of the samples, those whose nearest other row is a sample
    reference_share: float  # of the reference rows, those whose nearest other row is a reference


def nearest_neighbour_accuracy(samples: np.ndarray, reference: np.ndarray) -> TwoSample:
    """How often a row's nearest other row, by Hamming distance, is of its own kind.

    Binary images tie often; a row with several nearest ones votes by their mean, so that the order of the
    rows does not decide (taking the first would favour whichever set comes first).

    Args:
      samples, reference: 0 or 1, [rows, visible], of equal length: with unequal ones 0.5 is not the neutral figure.

    Raises:
      ValueError: if the two differ in shape or have fewer than 2 rows.
    """
    samples, reference = np.asarray(samples), np.asarray(reference)
    if samples.shape != reference.shape or samples.ndim != 2 or len(samples) < 2:
        raise ValueError(
            f"Both sets must have the same shape, at least 2 rows. Received {samples.shape} and {reference.shape}."
        )
    rows = np.concatenate([samples, reference])
    own_kind = np.repeat([True, False], len(samples))
    votes = np.concatenate([_own_kind_votes(rows, own_kind, start) for start in range(0, len(rows), _ROWS_AT_ONCE)])
    shares = votes[: len(samples)].mean(), votes[len(samples) :].mean()
    error = votes.std(ddof=1) / np.sqrt(len(votes))
    return TwoSample(float(np.mean(shares)), float(error), float(shares[0]), float(shares[1]))


def _own_kind_votes(rows: np.ndarray, is_sample: np.ndarray, start: int) -> np.ndarray:
    """For each of some rows, the share of its nearest other rows that are of its kind, float64 [rows]."""
    stop = min(start + _ROWS_AT_ONCE, len(rows))
    distances = hamming_distances(rows[start:stop], rows)
    distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
    nearest = distances == distances.min(axis=1, keepdims=True)
    same = is_sample[None, :] == is_sample[start:stop, None]
    return (nearest & same).sum(axis=1) / nearest.sum(axis=1)


def hamming_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number of pixels that differ, float32 [left rows, right rows]; both 0 or 1, [rows, visible]."""
    left, right = np.asarray(left, np.float32), np.asarray(right, np.float32)
    # Exact in float32: the sums are whole numbers far below 2^24.
    return left.sum(axis=1)[:, None] + right.sum(axis=1)[None, :] - 2 * (left @ right.T)


def nearest_rows(samples: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference row nearest to each sample, int64 [samples], and how many pixels differ, float32 [samples].

    A distance near 0 to a *training* image would mean that the model copies instead of generalising.
    """
    nearest, distances = np.empty(len(samples), np.int64), np.empty(len(samples), np.float32)
    for start in range(0, len(samples), _ROWS_AT_ONCE):
        block = hamming_distances(samples[start : start + _ROWS_AT_ONCE], reference)
        nearest[start : start + len(block)] = block.argmin(axis=1)
        distances[start : start + len(block)] = block.min(axis=1)
    return nearest, distances


def fit_classifier(features: np.ndarray, labels: np.ndarray, *, strength: float = 0.1, max_iter: int = 300) -> Any:
    """Multinomial logistic regression on `features` [rows, features]: a scikit-learn estimator with `predict`.

    Features are standardised for the fit, which then takes a third of the iterations and ends lower; the scaling is
    folded into the coefficients afterwards, so that the estimator takes features as they are.

    Args:
      strength: the inverse of the L2 penalty on the standardised features (scikit-learn's C).
      max_iter: stopping before convergence is a mild regulariser too; nothing warns.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features = np.asarray(features, np.float32)
    # A unit that is hardly ever on must not be blown up to the size of the others.
    mean, scale = features.mean(axis=0), features.std(axis=0) + _LEAST_SCALE
    classifier = LogisticRegression(C=strength, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((features - mean) / scale, labels)
    classifier.coef_ = classifier.coef_ / scale
    classifier.intercept_ = classifier.intercept_ - classifier.coef_ @ mean
    return classifier


def feature_error(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray
) -> float:
    """Share of test images that logistic regression on the features gets wrong, 0..1."""
    classifier = fit_classifier(train_features, train_labels)
    return float(np.mean(classifier.predict(np.asarray(test_features, np.float32)) != np.asarray(test_labels)))


def class_histogram(classes: np.ndarray, num_classes: int = 10) -> np.ndarray:
    """Share of each class, float64 [num_classes]; `classes` are whole numbers of any shape."""
    return np.bincount(np.ravel(classes), minlength=num_classes) / max(np.size(classes), 1)


def largest_deviation(histogram: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two class histograms, in percentage points.

    Classify the reference images too rather than take their labels: the classifier's own leanings then cancel.
    """
    return float(100 * np.abs(np.asarray(histogram) - np.asarray(reference)).max())


def class_changes(classes: np.ndarray, steps_between: int = 1) -> float:
    """How often a chain changes its class per 1,000 steps, mean over chains.

    Args:
      classes: whole numbers [times, chains], the class of every chain at regular times.
      steps_between: steps from one time to the next; changes there and back in between are missed.

    Raises:
      ValueError: with fewer than two times.
    """
    classes = np.asarray(classes)
    if classes.ndim != 2 or len(classes) < 2:
        raise ValueError(f"`classes` must be [times, chains] with at least 2 times. Received shape {classes.shape}.")
    return float(1_000 * (classes[1:] != classes[:-1]).mean() / steps_between)
