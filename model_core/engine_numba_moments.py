"""What an update of a training learns from: the moments of its two phases, without a matrix product.

Centred (Melchior, Fischer and Wiskott 2016; see `gradients.centred`) with offsets mu and lambda, the pair moments are

    G = <v h'> - mu <h>' - <v> lambda'            (differences of the two phases throughout)

and the moments of the biases are <v> - G lambda and <h> - G' mu. Neither product needs G: every row adds its v times
lambda.(h - lambda) to the one and its h times mu.(v - mu) to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from model_core.arrays import aligned
from model_core.kernels_moments import Offsets, PhaseRows, hidden_rows, list_rows_by_pixel, pair_moments, sum_rows
from model_core.kernels_rows import Rows, empty_tiles, padded

Share = Callable[[Callable[[slice], None], int, float], None]  # runs work on parts of 0..n-1, side by side


class PhaseMoments(NamedTuple):
    """Averages under the data less averages under the model: the gradient of the mean log-likelihood."""

    pairs: np.ndarray  # float32 [visible, hidden]
    visible: np.ndarray  # float32 [visible]
    hidden: np.ndarray  # float32 [hidden]
    awake_hidden: np.ndarray  # float32 [hidden], <h> under the data alone


def phase_moments(
    to_hidden: Rows,
    unit: np.float32,
    awake: np.ndarray,
    asleep: np.ndarray,
    offsets: tuple[np.ndarray | None, np.ndarray | None],
    asleep_sums: np.ndarray | None,
    share: Share,
) -> PhaseMoments:
    """See `NumbaEngine.phase_moments`."""
    visible, num_awake, num_hidden = np.concatenate([awake, asleep]), len(awake), to_hidden.width
    num_rows, num_visible = visible.shape
    about = Offsets(_vector(offsets[0], num_visible), padded(_vector(offsets[1], num_hidden)))
    phase = _empty_rows(num_awake, len(asleep), num_hidden)
    sums = np.empty((0, len(to_hidden.bias)), np.int32) if asleep_sums is None else asleep_sums
    cost = 0.5 * num_rows * num_visible * num_hidden
    share(lambda rows: hidden_rows(visible, rows.start, rows.stop, sums, phase, about, to_hidden, unit), num_rows, cost)

    lists, ones = list_rows_by_pixel(visible, phase, about), np.ones(num_rows)
    awake_hidden = sum_rows(phase.tiles, 0, num_awake, ones)
    of_hidden = awake_hidden + sum_rows(phase.tiles, num_awake, num_rows, ones)
    mu_h, narrow_hidden = sum_rows(phase.tiles, 0, num_rows, phase.leans[0]), of_hidden.astype(np.float32)
    pairs, of_pixels = aligned((num_visible, num_hidden), np.float32), np.empty((2, num_visible))

    def pixels(part: slice) -> None:
        pair_moments(pairs[part], of_pixels[:, part], part.start, lists, phase, about, narrow_hidden)

    share(pixels, num_visible, cost)
    of_visible, v_lambda = of_pixels
    of_visible, of_hidden = (
        of_visible - v_lambda + about.visible * (of_hidden @ about.hidden),
        of_hidden - mu_h + about.hidden * (of_visible @ about.visible),
    )
    moments = of_visible, of_hidden[:num_hidden], awake_hidden[:num_hidden]
    return PhaseMoments(pairs, *(moment.astype(np.float32) for moment in moments))


def _vector(offset: np.ndarray | None, size: int) -> np.ndarray:
    return np.zeros(size, np.float32) if offset is None else np.ascontiguousarray(offset, np.float32)


def _empty_rows(num_awake: int, num_asleep: int, num_hidden: int) -> PhaseRows:
    num_rows = num_awake + num_asleep
    shares = np.zeros(num_rows + 1)
    shares[:num_awake], shares[num_awake:-1] = 1 / num_awake, -1 / num_asleep
    return PhaseRows(shares, empty_tiles(num_hidden, num_rows, np.float32), np.zeros((2, num_rows + 1)))
