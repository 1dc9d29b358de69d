"""The work of `rbm train`: plan, trainer, the loop with its checkpoints, interruption, and publishing at the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from model_core.cli_support import CliError, say
from model_core.cli_train_folder import Plan, TrainingFolder
from model_core.cli_train_watch import Board, Watcher
from model_core.data import Dataset, load_dataset
from model_core.manifest import checked_name
from model_core.monitoring_progress import TrainingProgress
from model_core.presets import PRESETS, TrainConfig
from model_core.training import Trainer, leave_cores_to_chains
from model_core.training_checkpoints import saved_params, saved_updates

# Presets are made for MNIST; a set of a few hundred images gets smaller batches and more passes.
_SMALLEST_BATCH, _UPDATES_AN_EPOCH, _LEAST_UPDATES = 10, 100, 2_000
_MAX_RECALLED = 60  # epochs whose figures are worked out again from their checkpoints
_INTERRUPTED = 130


class Order(NamedTuple):
    """What the command line asks for."""

    data: str | None
    data_dir: Path | None
    preset: str | None
    asked: dict[str, Any]  # fields of TrainConfig that override the preset
    name: str
    checkpoints: Path
    resume: bool
    fresh: bool
    checkpoint: int | None  # publish this one, train no further
    tensorboard: Path | None
    evaluate: bool
    as_json: bool

    @property
    def folder(self) -> Path:
        return self.checkpoints / checked_name(self.name) / "training"

    def resume_command(self) -> str:
        data_dir = f" --data-dir {self.data_dir}" if self.data_dir else ""
        return f"rbm train --name {self.name} --checkpoints {self.checkpoints}{data_dir} --resume"


def run(order: Order) -> int:
    """Trains and publishes as ordered; returns the exit status."""
    folder = TrainingFolder(order.folder)
    with folder.locked():
        plan, dataset = _make_plan(order, folder)
        leave_cores_to_chains(plan.config)
        trainer = Trainer(plan.config, dataset.train, folder.path)
        _restore(order, folder, trainer)
        watcher = Watcher(dataset, plan.config.binarisation, plan.config.seed)
        history = _recall(folder, trainer, watcher)
        if order.checkpoint is None and not _train(order, folder, trainer, watcher, dataset, history):
            return _INTERRUPTED
        from model_core.cli_train_publish import publish_training

        publish_training(order, trainer, dataset, watcher, history)
        return 0


def _make_plan(order: Order, folder: TrainingFolder) -> tuple[Plan, Dataset]:
    """Finds out what to train on what, and writes it down before anything else; refuses what cannot go together."""
    if not order.resume and not order.fresh and (folder.read_plan() or folder.has_checkpoints()):
        raise CliError(
            f"There is a training in {folder.path} already. Go on with `{order.resume_command()}`, throw it away with "
            "--fresh, or train under another --name."
        )
    found = folder.read_plan() if order.resume else None
    if order.resume and found is None and not folder.has_checkpoints():
        raise CliError(f"There is no training in {folder.path} to go on with. Leave out --resume to begin one.")
    data = order.data or (found.data if found else "mnist")
    given = PRESETS[order.preset or "recommended"].replace(**order.asked)
    config = found.config if found else given
    dataset = load_dataset(data, data_dir=order.data_dir, num_validation=config.num_validation, seed=config.seed)
    if found is not None:
        _check_same(order, found, dataset, _fitted(given, order, dataset))
        return found, dataset
    if order.resume:
        say(f"{folder.path} has checkpoints but no config.json: taking the flags at their word.")
    elif order.fresh:
        folder.clear()
    data = data if data in ("mnist", "digits") else str(Path(data).resolve())
    plan = Plan(_fitted(config, order, dataset), data, dataset.sha256)
    if plan.config != config:
        fitted = f"{plan.config.epochs} epochs, batches of {plan.config.batch_size}"
        say(f"{len(dataset.train)} training images: {fitted}, {plan.config.warmup_updates} updates of warm-up.")
    folder.write_plan(plan)
    return plan, dataset


def _fitted(config: TrainConfig, order: Order, dataset: Dataset) -> TrainConfig:
    """Fits to the number of images what the command line leaves to the preset."""
    num_images, fitted = len(dataset.train), {}
    batch_size = min(config.batch_size, max(_SMALLEST_BATCH, num_images // _UPDATES_AN_EPOCH), num_images)
    fitted["batch_size"] = order.asked.get("batch_size", batch_size)
    an_epoch = config.updates_an_epoch or max(1, num_images // fitted["batch_size"])
    fitted["epochs"] = order.asked.get("epochs", max(config.epochs, -(-_LEAST_UPDATES // an_epoch)))
    fitted["warmup_updates"] = min(config.warmup_updates, fitted["epochs"] * an_epoch // 10)
    return config.replace(**{**fitted, **order.asked})


def _check_same(order: Order, found: Plan, dataset: Dataset, given: TrainConfig) -> None:
    """A training goes on as it began: the learning rates of every update follow from the whole configuration."""
    if dataset.sha256 != found.data_sha256:
        raise CliError(
            f"The training began with other images than those of {order.data or found.data} (sha256 "
            f"{found.data_sha256[:12]}..., not {dataset.sha256[:12]}...). Bring them back, or begin anew with --fresh."
        )
    fields = TrainConfig.__dataclass_fields__ if order.preset else order.asked
    changed = [
        f"{field} {getattr(found.config, field)!r}, not {getattr(given, field)!r}"
        for field in fields
        if getattr(found.config, field) != getattr(given, field)
    ]
    if changed:
        raise CliError(f"The training began with {'; '.join(changed)}. Resume without these flags, or use --fresh.")


def _restore(order: Order, folder: TrainingFolder, trainer: Trainer) -> None:
    if not order.resume or (order.checkpoint is None and not folder.has_checkpoints()):
        return  # stopped before its first checkpoint: the same bits come again
    path = None
    if order.checkpoint is not None:
        listed = saved_updates(folder.path)
        if order.checkpoint not in listed:
            known = ", ".join(map(str, listed)) or "none"
            raise CliError(f"No checkpoint after {order.checkpoint} updates is listed in {folder.path}: {known}.")
        path = listed[order.checkpoint]
    trainer.restore(path)
    say(f"Restored the checkpoint after {trainer.update} of {trainer.num_updates} updates.")


def _recall(folder: TrainingFolder, trainer: Trainer, watcher: Watcher) -> list[dict[str, Any]]:
    """The history up to the restored update; epochs that nobody wrote down are measured from their checkpoints."""
    rows = {row["update"]: row for row in folder.history() if row["update"] <= trainer.update}
    lost = {
        update: path
        for update, path in saved_updates(folder.path).items()
        if update not in rows
        and update
        and update % trainer.updates_an_epoch == 0
        and update <= trainer.update
        and Path(f"{path}.index").exists()
    }
    every = -(-len(lost) // _MAX_RECALLED) or 1
    for update, path in list(lost.items())[::-1][::every]:
        with suppress(ValueError):  # a damaged one costs a point of a curve, not the run
            figures = watcher.measure(saved_params(path))
            rows[update] = {"epoch": update // trainer.updates_an_epoch, "update": update, **figures}
    history = [rows[update] for update in sorted(rows)]
    folder.write_history(history)
    return history


def _train(
    order: Order,
    folder: TrainingFolder,
    trainer: Trainer,
    watcher: Watcher,
    dataset: Dataset,
    history: list[dict[str, Any]],
) -> bool:
    """Makes all updates that are left; False if it was interrupted, with everything saved."""
    started = time.monotonic() - max((row.get("seconds", 0.0) for row in history), default=0.0)
    progress = TrainingProgress(
        trainer.num_updates, images_per_update=trainer.batches.batch_size, first_update=trainer.update
    )
    board = Board(order.tensorboard, dataset.image_shape)
    with _interruption() as interrupted, progress:
        while trainer.update < trainer.num_updates and not interrupted:
            last_of_epoch = (trainer.update + 1) % trainer.updates_an_epoch == 0
            before = trainer.params if last_of_epoch else None
            trainer.make_update()
            progress.advance(updates=1)
            if before is None:
                continue
            trainer.save()
            figures = watcher.watch(trainer, before)
            row = {"epoch": trainer.epoch, "update": trainer.update, "seconds": time.monotonic() - started, **figures}
            folder.append_history(row)
            history.append(row)
            progress.metrics(trainer.epoch, figures)
            board.show(trainer, figures)
    board.close()
    if trainer.update < trainer.num_updates:
        trainer.save()
        say(f"Stopped and saved after {trainer.update} of {trainer.num_updates} updates. Go on with:")
        say(f"  {order.resume_command()}")
        return False
    return True


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """A list that is filled by the first Ctrl-C or SIGTERM; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            os._exit(_INTERRUPTED)
        received.append(number)
        say("\nStopping after this update; once more stops at once, without saving.")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
