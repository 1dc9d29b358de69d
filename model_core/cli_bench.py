"""`rbm bench`: measures chains, training or the service on this computer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_core.cli_support import AsJson, Checkpoints, CliError, ModelName, say

if TYPE_CHECKING:
    from model_core.rbm import RBMParams

_WHAT = ("chains", "train", "service")


def bench(
    what: Annotated[str, typer.Argument(help="chains, train or service.")] = "chains",
    peers: Annotated[
        bool, typer.Option("--peers", help="Also time PyTorch, scikit-learn and rbms, where installed.")
    ] = False,
    ais: Annotated[bool, typer.Option("--ais", help="chains: also 100 chains x 15,000 temperatures.")] = False,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="chains, train: rounds to take medians of.")] = 5,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.001, max=600, help="Of one timing [0.5], a training's [1], a load on the service [10]."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="service: one that runs already, on loopback. Default: starts its own.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="train: where MNIST is.")] = None,
    as_json: AsJson = False,
    model: ModelName = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Measures chains, training or the service on this computer.

    Examples: `rbm bench chains --peers --ais`, `rbm bench train --peers --json`, `rbm bench service`
    """
    if what not in _WHAT:
        raise typer.BadParameter(f"{what!r} is not one of {', '.join(_WHAT)}.", param_hint="WHAT")
    given: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    if what == "chains":
        figures, text = _chains(given | {"rounds": rounds, "peers": peers, "ais": ais}, checkpoints, model)
    elif what == "train":
        figures, text = _train(given | {"rounds": rounds, "peers": peers}, data_dir)
    else:
        figures, text = _service(given, url, checkpoints, model)
    print(json.dumps(figures, allow_nan=False) if as_json else text)


def _model_params(checkpoints: Path | None, model: str | None) -> tuple[RBMParams, str]:
    """The shipped model, or a stand-in where there is none and none was asked for."""
    from model_core.bench_chains import synthetic_params
    from model_core.cli_support import find_model
    from model_core.manifest import ModelError

    try:
        found = find_model(checkpoints, model, None)
    except (CliError, ModelError):
        if model is not None or checkpoints is not None:
            raise
        return synthetic_params(), "synthetic: no model is published here"
    return found.params, f"{found.name} {found.version}"


def _chains(options: dict[str, Any], checkpoints: Path | None, model: str | None) -> tuple[dict[str, Any], str]:
    from model_core import bench_chains

    params, name = _model_params(checkpoints, model)
    say(f"Timing chains of {name} ...")
    figures = {"model": name} | bench_chains.run(params, bench_chains.Options(**options))
    return figures, f"Model: {name}\n\n{bench_chains.describe(figures)}"


def _train(options: dict[str, Any], data_dir: Path | None) -> tuple[dict[str, Any], str]:
    from model_core import bench_train

    images, data = bench_train.binary_images(data_dir)
    say(f"Timing training on {data} ...")
    figures = bench_train.run(images, data, bench_train.Options(**options))
    return figures, bench_train.describe(figures)


def _service(
    options: dict[str, Any], url: str | None, checkpoints: Path | None, model: str | None
) -> tuple[dict[str, Any], str]:
    from model_core import bench_process, bench_service, model_store

    folder = checkpoints or model_store.default_checkpoints()
    params = _served_params(folder, model)
    say("Loading the service; this takes a minute or two ...")
    try:
        if url is not None:
            figures = _run(bench_service.run(bench_process.existing(url), params, bench_service.Options(**options)))
        else:
            with bench_process.started(folder) as server:
                figures = _run(bench_service.run(server, params, bench_service.Options(**options)))
    except bench_process.ServerError as error:
        raise CliError(str(error)) from error
    return figures, bench_service.describe(figures)


def _run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """On the lightest event loop at hand: the generator shares the server's cores."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.run(work)
    return uvloop.run(work)


def _served_params(folder: Path, model: str | None) -> RBMParams:
    from model_core.cli_support import find_model

    return find_model(folder, model, None).params
