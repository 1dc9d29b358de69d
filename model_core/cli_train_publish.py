"""What `rbm train` does last: judges the model, draws its report, and publishes it with its manifest."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from model_core.annealing import base_rate_bias
from model_core.chains import run_chains
from model_core.cli_support import say
from model_core.cli_train_watch import Watcher
from model_core.data import Dataset, binarize, pixel_probs
from model_core.data_binary import TEST_DRAW, TRAIN_DRAW
from model_core.equilibrium import LADDER_FILE, Ladder, fill_reservoir, format_ladder
from model_core.model_files import Model
from model_core.publishing import publish
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams, free_energy

if TYPE_CHECKING:
    from model_core.cli_train_run import Order
    from model_core.training import Trainer

REPORT_FILE = "training-report.png"
_NUM_CHAINS, _NUM_BETAS = 40, 10_000  # modest: seconds; `rbm evaluate` is for the record
_NUM_CHAINS_FILLING = 200
_NUM_MEMBERS = 2_000  # of the reservoir
_LADDER_ROUNDS = 100  # with a rung that exchanges at least 3 states in 10
_NUM_DREAMS, _DREAM_STEPS = 10, 20
_NUM_SAMPLES, _SAMPLE_STEPS = 64, 500
_log = logging.getLogger(__name__)


def publish_training(
    order: Order, trainer: Trainer, dataset: Dataset, watcher: Watcher, history: list[dict[str, Any]]
) -> None:
    """Publishes the trained parameters as the newest version of their name, and prints where."""
    params, seed = trainer.best_params, trainer.config.seed
    base = base_rate_bias(trainer.pixel_means)
    metrics: dict[str, Any] = {**_plain_names(watcher.measure(params)), "free_energy_gap_against": watcher.against}
    if order.evaluate:
        say("Estimating the log-likelihood (a modest run: `rbm evaluate` is for the record) ...")
        metrics.update(_likelihood(params, dataset, trainer, base))
    # Drawn as 0 or 1, as `/energy` draws an upload: a percentile compares like with like.
    held_out = binarize(dataset.validation if len(dataset.validation) else dataset.test, seed=0)
    manifest = {
        "training": _training_card(trainer, order, history),
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "source": dataset.source,
            "binarisation": trainer.config.binarisation,
            "split": {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")},
        },
        "metrics": metrics,
        "free_energy_percentiles": np.percentile(_free_energies(params, held_out), np.arange(101)),
        "licence": "MIT",
    }
    extra: dict[str, bytes] = {}
    if trainer.ladder is not None:
        ladder = trainer.ladder.ladder
        members = ladder.reservoir[:_NUM_MEMBERS]
        extra[LADDER_FILE] = format_ladder(Ladder((ladder.rungs[-1].params,), members, _LADDER_ROUNDS))
    elif order.evaluate:
        say("Filling the reservoir that equilibrium samples start from ...")
        chains = trainer.state.chains.numpy()[:_NUM_CHAINS_FILLING]
        members = fill_reservoir(params, chains, num_members=_NUM_MEMBERS, seed=seed)
        extra[LADDER_FILE] = format_ladder(Ladder((), members))
    if history:
        extra[REPORT_FILE] = _draw_report(order.name, params, dataset, history, seed)
    path = publish(
        order.checkpoints, order.name, params, image_shape=dataset.image_shape, manifest=manifest, extra_files=extra
    )
    say(f"Published {order.name} version {int(path.name)}, after {trainer.update} updates.")
    answer = {"model": order.name, "version": int(path.name), "path": str(path), "metrics": metrics}
    print(json.dumps(answer, allow_nan=False) if order.as_json else path)


def _training_card(trainer: Trainer, order: Order, history: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [row["seconds"] for row in history if "seconds" in row]
    return {
        "config": dataclasses.asdict(trainer.config),
        "preset": order.preset,
        "seed": trainer.config.seed,
        "updates": trainer.update,
        "epochs": trainer.epoch,
        "seconds": round(seconds[-1], 1) if seconds else None,
        "averaged_updates": int(trainer.state.num_averaged),
        "rate_scale": [float(scale) for scale in trainer.state.rate_scale.numpy()],
        "history": [_finite(row) for row in history],
    }


def _likelihood(params: RBMParams, dataset: Dataset, trainer: Trainer, base: np.ndarray) -> dict[str, Any]:
    """Both directions and their gap, as `rbm evaluate` has them, on one stochastic draw of the test images."""
    from model_core.cli_evaluate import Judged, collect_figures
    from model_core.evaluation import measure_log_z

    binary = {}
    for part, draw in (("test", TEST_DRAW), ("train", TRAIN_DRAW)):
        images = getattr(dataset, part)[:10_000]
        threshold = trainer.config.binarisation == "threshold"
        binary[part] = binarize(images, "threshold" if threshold else "stochastic", seed=0, draw=draw)
    judged = Judged(binary["test"], binary["train"], trainer.pixel_means, binary["test"], None)
    measured = measure_log_z(params, base, num_chains=_NUM_CHAINS, num_betas=_NUM_BETAS, seed=0)
    model = Model(params, {"name": dataset.name, "version": 0}, dataset.image_shape)
    figures = collect_figures(model, judged, measured, num_betas=_NUM_BETAS)
    say(f"Test log-likelihood {figures['log_likelihood']['test']:.2f} nats. {figures['verdict']}")
    for warning in figures["warnings"]:
        _log.warning("%s", warning)
    return {key: value for key, value in figures.items() if key not in ("model", "version")}


def _draw_report(name: str, params: RBMParams, dataset: Dataset, history: list[dict[str, Any]], seed: int) -> bytes:
    from model_core.plots import draw_report

    inputs = dataset.test[:_NUM_DREAMS]
    starts = binarize(inputs, seed=seed), noise(chain_seeds(seed, _NUM_SAMPLES), params.num_visible)
    dreams, samples = (
        run_chains(params, start, num_steps=steps, seeds=chain_seeds(seed, len(start)), return_probs=True)[1]
        for start, steps in zip(starts, (_DREAM_STEPS, _SAMPLE_STEPS), strict=True)
    )
    figure = draw_report(
        params,
        dataset.image_shape,
        history=history,
        inputs=pixel_probs(inputs).reshape(-1, *dataset.image_shape),
        dreams=dreams.reshape(-1, *dataset.image_shape),
        samples=samples.reshape(-1, *dataset.image_shape),
        title=f"{name}: {params.num_visible}x{params.num_hidden}",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, facecolor="white")
    return buffer.getvalue()


def _free_energies(params: RBMParams, images: np.ndarray) -> np.ndarray:
    parts = [free_energy(params, images[first : first + 5_000]) for first in range(0, len(images), 5_000)]
    return np.concatenate(parts)


def _plain_names(figures: dict[str, float]) -> dict[str, float]:
    return {name.replace(" ", "_"): float(value) for name, value in figures.items()}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, float) or np.isfinite(value)}
