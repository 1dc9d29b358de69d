"""`rbm evaluate`: the log-likelihood of a model, from both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from model_core.cli_support import AsJson, CliError, say, write_file

if TYPE_CHECKING:
    import numpy as np

    from model_core.evaluation import LogZReport
    from model_core.model_store import Model


class Judged(NamedTuple):
    """The images that a model is judged on, [images, visible]."""

    test: np.ndarray  # 0 or 1
    train: np.ndarray | None
    pixel_means: np.ndarray  # of the training images where there are any, [visible]
    test_grey: np.ndarray  # 0..1
    train_grey: np.ndarray | None
    test_labels: np.ndarray | None = None
    train_labels: np.ndarray | None = None


def evaluate(
    path: Annotated[Path, typer.Argument(help="A model folder, a version folder or a .safetensors file.")],
    data: Annotated[
        str, typer.Option(help="mnist, digits, an .npz with x_test and maybe x_train, or a folder of images.")
    ] = "mnist",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MNIST is. Default: RBM_DATA_DIR, the cache, a download.")
    ] = None,
    chains: Annotated[int, typer.Option(min=4, help="Chains in each direction.")] = 100,
    betas: Annotated[int, typer.Option(min=1, help="Temperatures of the path.")] = 15_000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same figures.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Also write a self-contained HTML page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """How probable a model finds test images, in nats, with log Z bounded from both sides.

    Annealing up to the model (AIS) gives a log Z that is low on average, so a likelihood that flatters; annealing down
    from equilibrium samples errs the other way. The likelihood quoted is the LOWER of the two (exact where a layer has
    at most 20 units). Grey images are binarised by one stochastic draw; threshold figures are not comparable.
    """
    from model_core.annealing import base_rate_bias
    from model_core.evaluation import measure_log_z
    from model_core.model_store import load_model

    model = load_model(path)
    judged = load_judged(data, data_dir, seed)
    if judged.test.shape[1] != model.params.num_visible:
        raise CliError(
            f"{path} has {model.params.num_visible} visible units, but the images of {data} have "
            f"{judged.test.shape[1]} pixels. Name the model's own kind of data with --data."
        )
    say(f"Estimating log Z: {chains} chains x {betas} temperatures, up, and down from equilibrium samples ...")
    base = base_rate_bias(judged.pixel_means)
    samples = published_samples(model, chains, seed)
    measured = measure_log_z(model.params, base, num_chains=chains, num_betas=betas, seed=seed, samples=samples)
    figures = collect_figures(model, judged, measured, num_betas=betas)
    if report is not None:
        from model_core.cli_report import build_report

        say("Drawing samples and training a classifier for the report ...")
        write_file(report, build_report(model, judged, base, figures, seed=seed).encode())
        say(f"Report: {report}")
    print(json.dumps(figures, allow_nan=False) if as_json else describe(figures))


def published_samples(model: Model, number: int, seed: int) -> np.ndarray | None:
    """Equilibrium samples by what was published with the model, uint8 [number, visible]; None where nothing was."""
    from model_core.equilibrium import LADDER_FILE, EquilibriumSampler, parse_ladder
    from model_core.model_store import load_extra
    from model_core.randomness import chain_seeds

    if LADDER_FILE not in model.manifest.get("files", {}):
        return None
    ladder = parse_ladder(load_extra(model, LADDER_FILE), model.params.num_visible, model.params.num_hidden)
    return EquilibriumSampler(model.params, ladder).sample(chain_seeds(seed, number))[0]


def load_judged(data: str, data_dir: Path | None, seed: int) -> Judged:
    """The images behind `--data`; grey ones are drawn once, a function of `seed`.

    Raises:
      DataError: if they are not there or damaged.
    """
    from model_core.data import binarize, load_dataset, load_evaluation_arrays, pixel_probs
    from model_core.data_binary import TEST_DRAW, TRAIN_DRAW

    if data.endswith(".npz"):
        arrays = load_evaluation_arrays(data, seed=seed)
        source = arrays.test if arrays.train is None else arrays.train
        return Judged(arrays.test, arrays.train, source.mean(axis=0), arrays.test, arrays.train)
    dataset = load_dataset(data, data_dir=data_dir)
    test = binarize(dataset.test, seed=seed, draw=TEST_DRAW)
    train = binarize(dataset.train, seed=seed, draw=TRAIN_DRAW)
    grey = pixel_probs(dataset.test), pixel_probs(dataset.train)
    means = grey[1].mean(axis=0, dtype="float64")
    return Judged(test, train, means, *grey, dataset.test_labels, dataset.train_labels)


def collect_figures(model: Model, judged: Judged, report: LogZReport, *, num_betas: int) -> dict[str, Any]:
    """What `--json` prints; numbers that are not finite are null."""
    from model_core.likelihood import mean_log_likelihood

    # mean log p(v) + log Z: independent of which log Z is believed
    plain = {"test": mean_log_likelihood(model.params, judged.test, 0.0), "train": None}
    if judged.train is not None:
        plain["train"] = mean_log_likelihood(model.params, judged.train, 0.0)
    estimates = {"ais": report.ais.log_z, "reverse": report.reverse.log_z, "bennett": report.combined}
    likelihoods = {
        f"log_likelihood_{name}": {part: _minus(value, log_z) for part, value in plain.items()}
        for name, log_z in (*estimates.items(), ("exact", report.exact))
    }
    return {
        "model": model.name,
        "version": model.version or None,
        "num_chains": len(report.ais.log_weights),
        "num_betas": num_betas,
        "log_z": {
            "ais": _number(report.ais.log_z),
            "ais_error": _number(report.ais.error),
            "ais_effective_sample_size": _number(report.ais.effective_sample_size),
            "reverse": _number(report.reverse.log_z),
            "reverse_error": _number(report.reverse.error),
            "reverse_effective_sample_size": _number(report.reverse.effective_sample_size),
            "gap": _number(report.gap),
            "bennett": _number(report.combined),
            "bennett_error": _number(report.combined_error),
            "tempering": _number(report.tempered.log_z),
            "tempering_error": _number(report.tempered.error),
            "exact": _number(report.exact),
        },
        "log_likelihood": {part: _minus(value, report.conservative) for part, value in plain.items()},
        **likelihoods,
        "verdict": report.verdict(),
        "warnings": report.warnings(),
    }


def describe(figures: dict[str, Any]) -> str:
    """The same for people."""
    log_z, version = figures["log_z"], figures["version"]
    rows = [
        ("AIS (low on average)", log_z["ais"], log_z["ais_error"], figures["log_likelihood_ais"]),
        ("reverse (high on average)", log_z["reverse"], log_z["reverse_error"], figures["log_likelihood_reverse"]),
        ("both, by Bennett's ratio", log_z["bennett"], log_z["bennett_error"], figures["log_likelihood_bennett"]),
    ]
    if log_z["exact"] is not None:
        rows.append(("exact", log_z["exact"], 0.0, figures["log_likelihood_exact"]))
    title = figures["model"] + (f", version {version}" if version else "")
    lines = [
        f"{title}: {figures['num_chains']} chains, {figures['num_betas']} temperatures; all figures in nats",
        f"{'':27}{'log Z':>10}{'error':>8}{'test':>10}{'train':>10}",
        *(
            f"{name:27}{_cell(value):>10}{_cell(error, 3):>8}{_cell(parts['test']):>10}{_cell(parts['train']):>10}"
            for name, value, error, parts in rows
        ),
        f"gap between the directions: {_cell(log_z['gap'], 3)}",
        f"test log-likelihood: {_cell(figures['log_likelihood']['test'])} (the lower of the two directions)"
        if log_z["exact"] is None
        else f"test log-likelihood: {_cell(figures['log_likelihood']['test'])} (exact)",
        figures["verdict"],
        *(f"Warning: {warning}" for warning in figures["warnings"]),
    ]
    return "\n".join(lines)


def _number(value: float | None) -> float | None:
    """JSON has no infinities."""
    return float(value) if value is not None and abs(value) < float("inf") else None


def _minus(value: float | None, log_z: float | None) -> float | None:
    return None if value is None or log_z is None else _number(value - log_z)


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
