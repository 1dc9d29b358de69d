"""Plots: what is drawn is the data that was given, on one scale, and files can be opened again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from model_core import plots
from model_core.rbm import RBMParams, checked_params

SHAPE = (3, 4)


@pytest.fixture
def params() -> RBMParams:
    rng = np.random.default_rng(0)
    return checked_params(rng.standard_normal((12, 7)), rng.standard_normal(12), rng.standard_normal(7))


def shown_arrays(figure: plots.Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_images_share_one_scale_from_black_to_white(tmp_path: Path) -> None:
    images = np.linspace(0.2, 0.7, 11 * 12).reshape(11, *SHAPE)
    figure = plots.draw_images(images)
    np.testing.assert_array_equal(shown_arrays(figure), images)
    assert {image.get_clim() for axes in figure.axes for image in axes.get_images()} == {(0.0, 1.0)}
    path = plots.save_figure(figure, tmp_path / "new folder" / "images.png")
    assert picture_size(path) > (100, 100)


def test_filters_are_columns_of_the_weights_strongest_first(params: RBMParams) -> None:
    figure = plots.draw_filters(params, SHAPE, num_filters=5)
    order = np.argsort(-np.linalg.norm(params.weights, axis=0))[:5]
    np.testing.assert_array_equal(shown_arrays(figure), params.weights[:, order].T.reshape(5, *SHAPE))
    limits = {image.get_clim() for axes in figure.axes for image in axes.get_images()}
    assert len(limits) == 1 and sum(limits.pop()) == 0


def test_filters_of_an_untrained_machine_can_be_drawn() -> None:
    plots.draw_filters(checked_params(np.zeros((12, 3)), np.zeros(12), np.zeros(3)), SHAPE)


def test_dreams_stand_below_their_inputs() -> None:
    inputs, dreams = np.zeros((4, *SHAPE)), np.ones((4, *SHAPE))
    figure = plots.draw_dreams(inputs, dreams, num_steps=20)
    assert [array.mean() for array in shown_arrays(figure)] == [0] * 4 + [1] * 4
    upper, lower = figure.axes[0], figure.axes[4]
    figure.canvas.draw()
    assert upper.get_position().y0 > lower.get_position().y1
    assert lower.get_ylabel() == "dream, 20 steps"
    with pytest.raises(ValueError, match="Received"):
        plots.draw_dreams(inputs, dreams[:3], num_steps=20)


def test_histograms_count_every_number_on_a_log_axis(params: RBMParams) -> None:
    figure = plots.draw_histograms(params)
    counts = [sum(cast(Rectangle, bar).get_height() for bar in axes.patches) for axes in figure.axes]
    assert counts == [12 * 7, 12, 7]
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}


def test_convergence_follows_large_weights() -> None:
    weights = np.zeros((3, 10, 10))
    weights[:, :2, :5] = np.array([0.0, 0.5, 1.0])[:, None, None]  # the tenth that ends largest
    figure = plots.draw_convergence(weights, [0, 1, 2], num_weights=6)
    lines = figure.axes[0].get_lines()
    assert len(lines) == 6
    for line in lines:
        np.testing.assert_array_equal(line.get_ydata(), [0.0, 0.5, 1.0])


def test_curves_draw_what_the_history_has() -> None:
    history = [{"epoch": 1, "gap": 0.1}, {"epoch": 2, "gap": 0.2, "error": 0.5}]
    figure = plots.draw_curves(history)
    drawn = {axes.get_title(): np.asarray(axes.get_lines()[0].get_xydata()).tolist() for axes in figure.axes}
    assert drawn == {"error": [[2, 0.5]], "gap": [[1, 0.1], [2, 0.2]]}
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.draw_curves([{"epoch": 1}])


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "gap": 0.5}]])
def test_the_report_is_one_page(params: RBMParams, history: list[dict[str, float]], tmp_path: Path) -> None:
    pictures = np.random.default_rng(1).random((6, *SHAPE))
    figure = plots.draw_report(
        params, SHAPE, history=history, inputs=pictures, dreams=pictures, samples=pictures, title="toy", curves=["gap"]
    )
    assert picture_size(plots.save_figure(figure, tmp_path / "report.png"))[1] > 1000


def test_drawing_opens_no_window_and_keeps_no_state() -> None:
    code = "import model_core.plots, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
