"""`rbm train`: trains a model, watches it, and publishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_core.cli_support import AsJson, CliError


def train(
    data: Annotated[
        str, typer.Option(help="mnist, digits, or the path of an .npz, .npy or folder of images.")
    ] = "mnist",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MNIST is. Default: RBM_DATA_DIR, the cache, a download.")
    ] = None,
    preset: Annotated[str, typer.Option(help="recommended, article or quick.")] = "recommended",
    hidden: Annotated[int | None, typer.Option(help="Hidden units; overrides the preset.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images; overrides the preset.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same model, bit for bit.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the data.")] = None,
    checkpoints: Annotated[Path, typer.Option(help="Folder of models to publish in.")] = Path("checkpoints"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the last run of this name stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Trains a model, watches it, and publishes it."""
    raise CliError("`rbm train` is not built yet.")
