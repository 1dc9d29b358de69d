"""`rbm plot`: the article's pictures, and the training report, of a published model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_core.cli_support import AsJson, Checkpoints, CliError, ModelName, Version, find_model, say

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from model_core.data import Dataset
    from model_core.model_store import Model

_ARTICLE_IMAGES = slice(40, 50)  # the test images of the article's dream figure
_MAX_EPOCHS = 50  # checkpoints read for the convergence figure: each holds all the weights
_NUM_SAMPLES, _SAMPLE_STEPS = 64, 500


def plot(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            help="images, convergence, histograms, filters, dreams, curves, report. Default: all it can draw."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("plots"),
    data: Annotated[
        str | None, typer.Option(help="mnist, digits or a path. Default: what the model learned from.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MNIST is. Default: RBM_DATA_DIR, the cache, a download.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, max=10_000, help="Of the dreams.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the dreams and samples.")] = 0,
    as_json: AsJson = False,
    model: ModelName = None,
    version: Version = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Draws a model: its training images, weights, dreams and learning curves. Prints the files written.

    Examples: `rbm plot`, `rbm plot filters dreams -o pictures`
    """
    wanted = list(kinds or _KINDS)
    unknown = [kind for kind in wanted if kind not in _KINDS]
    if unknown:
        raise typer.BadParameter(f"there is no picture {unknown[0]!r}. There are: {', '.join(_KINDS)}.")
    studio = _Studio(find_model(checkpoints, model, version), data, data_dir, steps, seed)
    written = []
    for kind in wanted:
        try:
            figure = _KINDS[kind](studio)
        except (CliError, ValueError) as error:
            if kinds:
                raise CliError(f"{kind}: {error}") from error
            say(f"left out {kind}: {error}")
            continue
        from model_core.plots import save_figure

        written.append(str(save_figure(figure, out / f"{studio.model.name}-{kind}.png")))
        if not as_json:
            print(written[-1])
    if as_json:
        print(json.dumps({"model": studio.model.name, "version": studio.model.version, "files": written}))


class _Studio:
    """What pictures are made of, each fetched when the first picture needs it."""

    def __init__(self, model: Model, data: str | None, data_dir: Path | None, steps: int, seed: int) -> None:
        self.model, self.steps, self.seed = model, steps, seed
        self._data = data or str((model.manifest.get("dataset") or {}).get("name", "mnist"))
        self._data_dir = data_dir
        self._dataset: Dataset | None = None

    def dataset(self) -> Dataset:
        from model_core.data import load_dataset

        if self._dataset is None:
            self._dataset = load_dataset(self._data, data_dir=self._data_dir)
            if self._dataset.image_shape != self.model.image_shape:
                raise CliError(f"the images of {self._data} are not of the model's size, {self.model.image_shape}.")
        return self._dataset

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """[images, visible] -> [images, rows, columns] in 0..1."""
        from model_core.data import pixel_probs

        return pixel_probs(rows).reshape(-1, *self.model.image_shape)

    def dreams(self) -> tuple[np.ndarray, np.ndarray]:
        """The article's ten test images, and their dreams."""
        from model_core.data import binarize

        test = self.dataset().test
        images = test[_ARTICLE_IMAGES] if len(test) >= _ARTICLE_IMAGES.stop else test[:10]
        return self.pictures(images), self._run(binarize(images, seed=self.seed), self.steps)

    def samples(self) -> np.ndarray:
        from model_core.randomness import chain_seeds, noise

        start = noise(chain_seeds(self.seed, _NUM_SAMPLES), self.model.params.num_visible)
        return self._run(start, _SAMPLE_STEPS)

    def _run(self, start: np.ndarray, num_steps: int) -> np.ndarray:
        from model_core.chains import run_chains
        from model_core.randomness import chain_seeds

        seeds = chain_seeds(self.seed, len(start))
        probs = run_chains(self.model.params, start, num_steps=num_steps, seeds=seeds, return_probs=True)[1]
        return self.pictures(probs)

    def history(self) -> list[dict[str, Any]]:
        """A row of numbers an epoch, out of the manifest."""
        history = (self.model.manifest.get("training") or {}).get("history") or []
        if not history:
            raise CliError("the model's manifest has no training history; models made by `rbm train` have one.")
        return history


def _draw_images(studio: _Studio) -> Figure:
    from model_core.plots import draw_images

    return draw_images(studio.pictures(studio.dataset().train[:30]))


def _draw_convergence(studio: _Studio) -> Figure:
    import numpy as np

    from model_core.plots import draw_convergence
    from model_core.training_checkpoints import saved_params, saved_updates

    folder = studio.model.path.parent / "training" if studio.model.path else Path("training")
    found = saved_updates(folder)
    if len(found) < 2:
        raise CliError(f"it needs the checkpoints of a training, two at least; there are {len(found)} in {folder}.")
    chosen = np.unique(np.linspace(0, len(found) - 1, min(len(found), _MAX_EPOCHS)).round().astype(int))
    updates = np.array(list(found))[chosen]
    weights = np.stack([saved_params(found[update]).weights for update in updates])
    return draw_convergence(weights, [int(index) for index in chosen])


def _draw_histograms(studio: _Studio) -> Figure:
    from model_core.plots import draw_histograms

    return draw_histograms(studio.model.params)


def _draw_filters(studio: _Studio) -> Figure:
    from model_core.plots import draw_filters

    return draw_filters(studio.model.params, studio.model.image_shape)


def _draw_dreams(studio: _Studio) -> Figure:
    from model_core.plots import draw_dreams

    return draw_dreams(*studio.dreams(), num_steps=studio.steps)


def _draw_curves(studio: _Studio) -> Figure:
    from model_core.plots import draw_curves

    return draw_curves(studio.history())


def _draw_report(studio: _Studio) -> Figure:
    from model_core.plots import draw_report

    model = studio.model
    inputs, dreams = studio.dreams()
    title = f"{model.name} version {model.version}: {model.params.num_visible}x{model.params.num_hidden}"
    return draw_report(
        model.params,
        model.image_shape,
        history=studio.history(),
        inputs=inputs,
        dreams=dreams,
        samples=studio.samples(),
        title=title,
    )


_KINDS = {
    "images": _draw_images,
    "convergence": _draw_convergence,
    "histograms": _draw_histograms,
    "filters": _draw_filters,
    "dreams": _draw_dreams,
    "curves": _draw_curves,
    "report": _draw_report,
}
