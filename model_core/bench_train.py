"""`rbm bench train`: images a second of persistent contrastive divergence, ours and that of peers.

The rules of the race: the same binary images, weights drawn with a spread of 0.01, the same batch, number of chains,
steps an update, float32, and as many threads as cores. Visible biases start at the log-odds of the pixel means, but
for scikit-learn, which has no way to say so. Ours is timed as `rbm train` runs it: through `Trainer`, centred, with
its own shuffling and its resumable state. Every trainer goes on learning from round to round; nobody's first updates
(compiling, settling) are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_core import bench

OURS = "rbm"
RBMS = ("rbms, stock", "rbms, plain")
_RATE = 0.05
_SYNTHETIC_IMAGES, _SYNTHETIC_PIXELS, _DENSITY = 10_000, 784, 0.13


@dataclass(frozen=True)
class Setting:
    """One race."""

    name: str
    batch_size: int
    num_chains: int
    num_steps: int
    peers: tuple[str, ...]  # who is raced against
    bound: float
    aim: float


SETTINGS = (
    Setting("PCD-1", 100, 100, 1, ("scikit-learn", *RBMS), 2.0, 5.0),
    Setting("PCD-10", 200, 500, 10, RBMS, 3.0, 8.0),
)


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    num_hidden: int = 500
    rounds: int = 5
    seconds: float = 1.0  # of one timing
    peers: bool = False
    settings: tuple[Setting, ...] = SETTINGS


def binary_images(data_dir: Path | None = None) -> tuple[np.ndarray, str]:
    """MNIST's training images cut at one half, uint8 0 or 1 [60000, 784], or a stand-in; and which it is."""
    from model_core.data import load_dataset
    from model_core.data_binary import binarize
    from model_core.data_files import DataError

    try:
        return binarize(load_dataset("mnist", data_dir=data_dir).train, "threshold"), "MNIST, cut at one half"
    except DataError:
        return synthetic_images(), "synthetic: MNIST was not found (--data-dir)"


def synthetic_images(num_images: int = _SYNTHETIC_IMAGES, num_pixels: int = _SYNTHETIC_PIXELS) -> np.ndarray:
    """Binary noise as dense as MNIST, brighter in the middle; uint8 0 or 1."""
    rng = np.random.default_rng(0)
    profile = np.exp(-(np.linspace(-2.0, 2.0, num_pixels) ** 2))
    return (rng.random((num_images, num_pixels)) < _DENSITY * profile / profile.mean()).astype(np.uint8)


def run(images: np.ndarray, data: str, options: Options) -> dict[str, Any]:
    """All figures: images uint8 0 or 1 [images, visible]; `data` says what they are."""
    started_on = bench.computer()
    races = [_race(images, setting, options) for setting in options.settings]
    return {
        "bench": "train",
        "schema": bench.SCHEMA,
        "computer": started_on,
        "data": data,
        "units": [images.shape[1], options.num_hidden],
        "rounds": options.rounds,
        "races": races,
        "lines": lines(races, options.settings),
    }


def lines(races: list[dict[str, Any]], settings: tuple[Setting, ...]) -> list[dict[str, Any]]:
    """The lines of the issue, with their aims."""
    return [
        bench.line(f"{setting.name}, images/s, times the fastest peer", race["times_peers"], setting.bound, setting.aim)
        for setting, race in zip(settings, races, strict=True)
    ]


def describe(figures: dict[str, Any]) -> str:
    """The figures as tables for a person."""
    names = list(dict.fromkeys(name for race in figures["races"] for name in race["rates"]))
    rows = []
    for race in figures["races"]:
        label = f"{race['name']} (batch {race['batch_size']}, {race['num_chains']} chains)"
        medians = (race["rates"].get(name, {}).get("median") for name in names)
        rows.append((label, *medians, race["times_peers"]))
    table = bench.markdown(("", *names, "x fastest peer"), rows)
    units = "x".join(map(str, figures["units"]))
    head = f"Images a second, {units} units, {figures['data']}, medians of {figures['rounds']} rounds"
    return "\n\n".join([head, bench.describe_computer(figures["computer"]), table, bench.lines_table(figures["lines"])])


def _race(images: np.ndarray, setting: Setting, options: Options) -> dict[str, Any]:
    contestants = {OURS: _our_training(images, setting, options.num_hidden)}
    if options.peers:
        contestants |= _peers(images, setting, options.num_hidden)
    seconds = bench.time_in_turn(contestants, rounds=options.rounds, seconds=options.seconds)
    rates = bench.rates(seconds, setting.batch_size)
    return {
        "name": setting.name,
        "batch_size": setting.batch_size,
        "num_chains": setting.num_chains,
        "num_steps": setting.num_steps,
        "rates": rates,
        "times_peers": bench.ratio(rates, OURS, setting.peers),
    }


def _our_training(images: np.ndarray, setting: Setting, num_hidden: int) -> bench.Work:
    from model_core.presets import TrainConfig
    from model_core.training import Trainer, leave_cores_to_chains

    config = TrainConfig(
        num_hidden=num_hidden,
        epochs=1_000_000,  # longer than any bench
        batch_size=setting.batch_size,
        num_chains=setting.num_chains,
        chain_steps=setting.num_steps,
        learning_rate_weights=_RATE,
        learning_rate_biases=_RATE,
        schedule="constant",
        binarisation="threshold",  # the images are binary: leaves them as they are
    )
    leave_cores_to_chains(config)  # as `rbm train` does
    trainer = Trainer(config, images.astype(np.float32))

    def train(num_updates: int) -> None:
        for _ in trainer.train(num_updates):
            pass

    return train


def _peers(images: np.ndarray, setting: Setting, num_hidden: int) -> dict[str, bench.Work]:
    from model_core import bench_peers

    shared: dict[str, Any] = {"num_hidden": num_hidden, "batch_size": setting.batch_size, "rate": _RATE}
    floats = images.astype(np.float32)
    works = bench_peers.rbms_trainings(floats, num_chains=setting.num_chains, num_steps=setting.num_steps, **shared)
    if setting.num_steps == 1 and setting.num_chains == setting.batch_size:
        sklearn = bench_peers.sklearn_training(floats, **shared)
        works |= {"scikit-learn": sklearn} if sklearn else {}
    return works
