"""The pictures of a model and its training, drawn with Matplotlib: those of the article, and a report of them all.

Each `draw_` function takes arrays and returns a `Figure`; `save_figure` writes it. No window is ever opened:
figures are made without pyplot, so there is no global state and nothing to close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from model_core.rbm import RBMParams

Array = np.ndarray
_DPI = 120
_COLOUR = "#2b5c8a"
_TITLES = {"weights": "weights", "visible_bias": "visible biases", "hidden_bias": "hidden biases"}


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Writes a figure as the kind of file that its ending names (PNG, SVG, PDF).

    Raises:
      ValueError: if the ending is unknown.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")
    return path


def draw_images(images: Array, *, title: str = "Training images", num_columns: int = 10) -> Figure:
    """Pictures in rows, all on one scale from 0 (black) to 1 (white).

    Args:
      images: [pictures, rows, columns], in 0..1.
      title: above them.
      num_columns: pictures in a row.
    """
    num_columns = min(num_columns, len(images))
    num_rows = -(-len(images) // num_columns)
    figure = _new_figure(0.8 * num_columns, 0.8 * num_rows + 0.5)
    figure.suptitle(title)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, image in zip(axes.flat, images, strict=False):
        place.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    return figure


def draw_dreams(inputs: Array, dreams: Array, *, num_steps: int) -> Figure:
    """The article's dream figure: inputs above, what became of each after `num_steps` steps below.

    Args:
      inputs: [pictures, rows, columns], in 0..1.
      dreams: of the same shape.
      num_steps: written beside them.

    Raises:
      ValueError: if the shapes differ.
    """
    if inputs.shape != dreams.shape or inputs.ndim != 3:
        raise ValueError(
            f"`inputs` and `dreams` must be [pictures, rows, columns]. Received {inputs.shape}, {dreams.shape}."
        )
    figure = _new_figure(0.9 * len(inputs) + 0.6, 2.3)
    axes = figure.subplots(2, len(inputs), squeeze=False)
    for row, (label, images) in enumerate((("input", inputs), (f"dream, {num_steps} steps", dreams))):
        for column, (place, image) in enumerate(zip(axes[row], images, strict=True)):
            place.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            if column == 0:
                place.set_ylabel(label, fontsize=8)
    return figure


def draw_filters(params: RBMParams, image_shape: tuple[int, int], *, num_filters: int = 100) -> Figure:
    """What hidden units look for: columns of the weights as pictures, all on one scale, blue below and red above 0.

    The strongest units (largest norm) come first. One scale for all shows which units are still weak (Hinton 2012,
    section 15); it ends at the 99.5th percentile of |weight|, so that a few extreme pixels do not bleach the rest.
    """
    filters, limit = _strongest_filters(params, image_shape, num_filters)
    num_columns = int(np.ceil(np.sqrt(len(filters))))
    num_rows = -(-len(filters) // num_columns)
    figure = _new_figure(0.75 * num_columns + 1.0, 0.75 * num_rows + 0.5)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, one in zip(axes.flat, filters, strict=False):
        shown = place.imshow(one, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    figure.suptitle(f"Filters of the {len(filters)} strongest of {params.num_hidden} hidden units")
    figure.colorbar(shown, ax=axes, shrink=0.6, label="weight")
    return figure


def draw_histograms(params: RBMParams) -> Figure:
    """Weights, visible biases and hidden biases: counts on a log scale, so that the tails are seen."""
    figure = _new_figure(11, 3.2)
    for axes, (name, values) in zip(figure.subplots(1, 3), params._asdict().items(), strict=True):
        _draw_histogram(axes, values, _TITLES[name])
    return figure


def draw_convergence(weights_by_epoch: Array, epochs: Sequence[int], *, num_weights: int = 20, seed: int = 0) -> Figure:
    """How single weights move over the epochs, the article's convergence figure.

    Args:
      weights_by_epoch: [epochs, visible, hidden].
      epochs: their numbers, rising.
      num_weights: weights to follow. They are drawn among the tenth that ends largest: most others belong to pixels
        that are never on, and stay near zero.
      seed: the same seed, the same weights.
    """
    traces = np.asarray(weights_by_epoch).reshape(len(epochs), -1)
    largest = np.argsort(-np.abs(traces[-1]))[: max(num_weights, traces.shape[1] // 10)]
    chosen = np.random.default_rng(seed).choice(largest, min(num_weights, len(largest)), replace=False)
    figure = _new_figure(6.5, 4)
    axes = figure.subplots()
    axes.plot(epochs, traces[:, chosen], linewidth=1)
    axes.set(title=f"Convergence of {len(chosen)} weights", xlabel="epoch", ylabel="weight")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure


def draw_curves(history: Sequence[Mapping[str, float]], *, x: str = "epoch") -> Figure:
    """Learning curves: one panel for each quantity in the rows of `history`, against the quantity `x`.

    Raises:
      ValueError: if there is nothing to draw.
    """
    names = sorted({name for row in history for name, value in row.items() if name != x and _is_number(value)})
    if not names:
        raise ValueError(f"nothing to draw: no row of the history has a number beside {x!r}.")
    num_columns = min(3, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = _new_figure(3.8 * num_columns, 2.8 * num_rows)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for place, name in zip(axes.flat, names, strict=False):
        _draw_curve(place, history, x, name)
    for place in axes.flat[len(names) :]:
        place.axis("off")
    return figure


def draw_report(
    params: RBMParams,
    image_shape: tuple[int, int],
    *,
    history: Sequence[Mapping[str, float]],
    inputs: Array,
    dreams: Array,
    samples: Array,
    title: str,
    curves: Sequence[str] = ("reconstruction error", "free energy gap", "pseudo likelihood"),
) -> Figure:
    """The training report on one page: learning curves, histograms, filters, dreams and samples.

    Args:
      params: the trained model.
      image_shape: (rows, columns) of a picture.
      history: a row of numbers an epoch, with the key "epoch".
      inputs: held-out images, [pictures, rows, columns], in 0..1.
      dreams: what became of them, of the same shape.
      samples: chains from noise, [pictures, rows, columns].
      title: the name of the model and the figures that sum it up.
      curves: which numbers of the history to draw; those it lacks are left out.
    """
    figure = _new_figure(12, 15)
    figure.suptitle(title, fontsize=14)
    known = [name for name in curves if any(name in row for row in history)]
    parts: Any = figure.subfigures(4, 1, height_ratios=[2.6, 2.6, 3.2, 6])
    if known:
        for axes, name in zip(np.atleast_1d(parts[0].subplots(1, len(known))), known, strict=True):
            _draw_curve(axes, history, "epoch", name)
    for axes, (name, values) in zip(parts[1].subplots(1, 3), params._asdict().items(), strict=True):
        _draw_histogram(axes, values, _TITLES[name])
    _draw_sheet(parts[2], np.concatenate([inputs, dreams]), len(inputs), "Held-out digits above, their dreams below")
    left, right = parts[3].subfigures(1, 2)
    filters, limit = _strongest_filters(params, image_shape, 100)
    _draw_sheet(left, filters, 10, "Strongest filters", limits=(-limit, limit), colours="RdBu_r")
    _draw_sheet(right, samples, int(np.ceil(np.sqrt(len(samples)))), "Samples from noise")
    return figure


def _strongest_filters(params: RBMParams, image_shape: tuple[int, int], num_filters: int) -> tuple[Array, float]:
    """Filters [filters, rows, columns], the largest norm first, and the weight at which their grey scale ends."""
    order = np.argsort(-np.linalg.norm(params.weights, axis=0))[:num_filters]
    filters = params.weights.T[order].reshape(-1, *image_shape)
    return filters, float(np.percentile(np.abs(filters), 99.5)) or 1.0


def _new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _draw_curve(axes: Axes, history: Sequence[Mapping[str, float]], x: str, name: str) -> None:
    points = [(row[x], row[name]) for row in history if x in row and _is_number(row.get(name))]
    axes.plot(*zip(*points, strict=True), color=_COLOUR, marker="." if len(points) < 40 else None)
    axes.set(title=name, xlabel=x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _draw_histogram(axes: Axes, values: Array, title: str) -> None:
    # Freedman-Diaconis gives too many bins for 392,000 weights and too few for 500 biases with a tail.
    num_bins = int(np.clip(2 * np.cbrt(values.size), 20, 120))
    axes.hist(np.ravel(values), bins=num_bins, color=_COLOUR)
    axes.set_yscale("log")
    axes.set(title=f"{title} ({values.size:,})", xlabel="value", ylabel="count")


def _draw_sheet(
    part: Figure | SubFigure,
    images: Array,
    num_columns: int,
    title: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    colours: str = "gray",
) -> None:
    """Many small pictures as one, in rows of `num_columns`, with blank lines between."""
    height, width = images.shape[1:]
    num_rows = -(-len(images) // num_columns)
    sheet = np.full((num_rows * (height + 2) - 2, num_columns * (width + 2) - 2), np.nan)
    for index, image in enumerate(images):
        top, left = (index // num_columns) * (height + 2), (index % num_columns) * (width + 2)
        sheet[top : top + height, left : left + width] = image
    axes = part.subplots()
    axes.imshow(sheet, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.axis("off")
    axes.set_title(title)
