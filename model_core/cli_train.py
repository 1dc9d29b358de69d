"""`rbm train`: trains a model, watches it, and publishes it. Here are the flags; `cli_train_run` does the work."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model_core.cli_support import AsJson, CliError
from model_core.presets import PRESETS, TrainConfig


def train(
    data: Annotated[
        str | None,
        typer.Option(help="mnist, digits, or the path of an .npz, .npy or folder of images. [default: mnist]"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MNIST is. Default: RBM_DATA_DIR, the cache, a download.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"{', '.join(PRESETS)}. [default: recommended]")] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden units; this and what follows override the preset.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images an update.")] = None,
    sampler: Annotated[
        Literal["cd", "pcd", "ladder"] | None, typer.Option(help="Chains start at images, go on, or are tempered.")
    ] = None,
    chains: Annotated[int | None, typer.Option(help="Persistent chains.")] = None,
    steps: Annotated[int | None, typer.Option(help="Gibbs steps an update, the k of CD-k.")] = None,
    rule: Annotated[Literal["sgd", "momentum", "adam"] | None, typer.Option(help="Of all parameters.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of the weights.")] = None,
    bias_rate: Annotated[float | None, typer.Option(help="Learning rate of the biases.")] = None,
    validation: Annotated[int | None, typer.Option(help="Training images to set aside and watch.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any field of TrainConfig, as in --set weight_decay=1e-4.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same model, bit for bit. [default: 0]")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the data.")] = None,
    checkpoints: Annotated[Path, typer.Option(envvar="RBM_CHECKPOINTS", help="Folder of models to publish in.")] = Path(
        "checkpoints"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the last run of this name stopped.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away the last training of this name.")] = False,
    checkpoint: Annotated[
        int | None, typer.Option(help="Train no further: publish the checkpoint after so many updates.")
    ] = None,
    list_checkpoints: Annotated[bool, typer.Option("--list-checkpoints", help="List them, and stop.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
    evaluate: Annotated[bool, typer.Option(help="Estimate the log-likelihood before publishing.")] = True,
    as_json: AsJson = False,
) -> None:
    """Trains a model, a checkpoint an epoch, and publishes it. Ctrl-C saves; --resume goes on as if never stopped.

    Examples: `rbm train --preset quick`, `rbm train --data digits`, `rbm train --data my-pictures/ --hidden 200`
    """
    if resume and fresh:
        raise typer.BadParameter("--resume goes on with a training and --fresh throws it away: choose one.")
    sizes = {"num_hidden": hidden, "epochs": epochs, "batch_size": batch_size, "num_validation": validation}
    chain = {"sampler": sampler, "num_chains": chains, "chain_steps": steps, "seed": seed}
    rates = {
        "rule_weights": rule,
        "rule_biases": rule,
        "learning_rate_weights": rate,
        "learning_rate_biases": bias_rate,
    }
    asked = {field: value for field, value in {**sizes, **chain, **rates}.items() if value is not None}
    asked.update(_parse_setting(text) for text in settings or ())
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"there is no preset {preset!r}. There are: {', '.join(PRESETS)}.")
    _check(preset, asked)
    from model_core.cli_train_run import Order, run

    order = Order(
        data=data,
        data_dir=data_dir,
        preset=preset,
        asked=asked,
        name=name or default_name(data or "mnist"),
        checkpoints=checkpoints,
        resume=resume or checkpoint is not None,
        fresh=fresh,
        checkpoint=checkpoint,
        tensorboard=tensorboard,
        evaluate=evaluate,
        as_json=as_json,
    )
    if list_checkpoints:
        _list(order.folder, as_json)
    else:
        raise typer.Exit(run(order))


def default_name(data: str) -> str:
    """A model's name out of that of its data.

    Raises:
      CliError: if nothing of it can be used.
    """
    stem = data if data in ("mnist", "digits") else Path(data).resolve().stem
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:64].strip("-")
    if not name:
        raise CliError(f"No name for the model can be made of {data!r}: give one with --name.")
    return name


def _parse_setting(text: str) -> tuple[str, Any]:
    """`weight_decay=1e-4` -> ("weight_decay", 0.0001), by the type of the field's default."""
    field, equals, value = text.partition("=")
    defaults = {known.name: known.default for known in dataclasses.fields(TrainConfig)}
    if not equals or field not in defaults:
        raise typer.BadParameter(f"--set takes FIELD=VALUE. Received {text!r}; the fields: {', '.join(defaults)}.")
    try:
        return field, _parse_value(field, value, defaults[field])
    except ValueError:
        raise typer.BadParameter(f"--set {field}: {value!r} is not a value like {defaults[field]!r}.") from None


def _parse_value(field: str, value: str, default: Any) -> Any:
    if field == "rate_changes":  # 10:0.5,20:0.1
        pairs = (pair.split(":") for pair in value.split(",") if pair)
        return tuple((int(epoch), float(factor)) for epoch, factor in pairs)
    if field == "updates_an_epoch":
        return None if value == "none" else int(value)
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise ValueError(value)
        return value == "true"
    return type(default)(value)


def _check(preset: str | None, asked: dict[str, Any]) -> None:
    try:
        PRESETS[preset or "recommended"].replace(**asked)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _list(folder: Path, as_json: bool) -> None:
    import json

    from model_core.training_checkpoints import saved_updates

    try:
        found = saved_updates(folder)
    except ValueError:
        raise CliError(f"{folder}/checkpoint, the list of checkpoints, is damaged; `--resume` mends it.") from None
    if not found:
        raise CliError(f"There are no training checkpoints in {folder}.")
    if as_json:
        print(json.dumps([{"updates": updates, "path": path} for updates, path in found.items()]))
    else:
        print("\n".join(f"{updates:>9}  {path}" for updates, path in found.items()))
