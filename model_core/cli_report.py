"""What `rbm evaluate --report` measures beside the likelihood, and how the page is put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_core.chains import run_chains
from model_core.cli_evaluate import published_samples
from model_core.model_store import Model
from model_core.monitoring import hidden_health
from model_core.plots import draw_curves, draw_filters, draw_histograms, draw_images
from model_core.quality import (
    class_changes,
    class_histogram,
    fit_classifier,
    largest_deviation,
    nearest_neighbour_accuracy,
    nearest_rows,
)
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams, hidden_probs
from model_core.report import Section, draw_class_shares, render_page
from model_core.tempering import equilibrium_samples

if TYPE_CHECKING:
    from model_core.cli_evaluate import Judged

_NUM_SAMPLES, _NOISE_STEPS = 2_000, 500
_LADDERS, _ROUNDS = 250, 120
_CHANGE_CHAINS, _CHANGE_STEPS, _CHANGE_TIMES = 100, 10, 100
_SHOWN = 60


def build_report(
    model: Model, data: Judged, base_visible_bias: np.ndarray, figures: dict[str, Any], *, seed: int
) -> str:
    """The page as HTML; a few minutes on two cores for 784x500.

    Args:
      model: what is judged.
      data: the images to compare with; without labels the sections on classes are left out.
      base_visible_bias: see `annealing.base_rate_bias`.
      figures: what `rbm evaluate --json` prints.
      seed: the same seed gives the same page.
    """
    params, number = model.params, min(_NUM_SAMPLES, len(data.test))
    drawn = published_samples(model, number, seed + 1)
    if drawn is None:
        ladders = min(_LADDERS, number)
        drawn = equilibrium_samples(
            params, number, base_visible_bias=base_visible_bias, seed=seed + 1, num_rounds=_ROUNDS, num_ladders=ladders
        ).samples
    seeds = chain_seeds(seed + 2, number)
    plain = run_chains(params, noise(seeds, params.num_visible), num_steps=_NOISE_STEPS, seeds=seeds)
    samples = {"equilibrium": drawn, f"{_NOISE_STEPS} steps from noise": np.asarray(plain)}
    sections = [
        _likelihood_section(figures),
        *_history_section(model),
        _sample_section(model, samples, data),
        *_copies_section(model, drawn, data),
        *_class_sections(params, samples, data, seed),
        _unit_section(model, data),
    ]
    version = f", version {figures['version']}" if figures["version"] else ""
    return render_page(f"{figures['model']}{version}: {params.num_visible}x{params.num_hidden} RBM", sections)


def _likelihood_section(figures: dict[str, Any]) -> Section:
    log_z = figures["log_z"]
    rows: list[tuple[str, ...]] = [("", "log Z", "error", "test", "train")]
    for label, key in (("AIS: flatters on average", "ais"), ("reverse: too hard on average", "reverse"),
                       ("both, by Bennett's ratio", "bennett"), ("exact", "exact")):  # fmt: skip
        if log_z[key] is not None:
            parts = figures[f"log_likelihood_{key}"]
            rows.append((label, *map(_cell, (log_z[key], log_z.get(f"{key}_error"), parts["test"], parts["train"]))))
    text = (
        f"Mean log p(v) in nats over images binarised by one stochastic draw; {figures['num_chains']} chains, "
        f"{figures['num_betas']} temperatures. {figures['verdict']}"
    )
    return Section("Log-likelihood", text, rows, warnings=figures["warnings"])


def _history_section(model: Model) -> list[Section]:
    history = (model.manifest.get("training") or {}).get("history") or []
    if not history:
        return []
    text = "What the training logged, epoch by epoch."
    return [Section("Training", text, figures=[("learning curves", draw_curves(history))])]


def _sample_section(model: Model, samples: dict[str, np.ndarray], data: Judged) -> Section:
    rows: list[tuple[str, ...]] = [("samples", "two-sample accuracy", "error", "of the samples", "of the test images")]
    for name, states in samples.items():
        score = nearest_neighbour_accuracy(states, data.test[: len(states)])
        cells = (score.accuracy, score.error, score.sample_share, score.reference_share)
        rows.append((name, *(f"{value:.3f}" for value in cells)))
    drawings = [
        (name, draw_images(states[:_SHOWN].reshape(-1, *model.image_shape), title=name, num_columns=20))
        for name, states in {**samples, "test images": data.test}.items()
    ]
    text = (
        "How often the nearest other image is of the same kind: 0.5 cannot be told from test images, 1 always can. "
        "Equilibrium samples are draws of the model itself; chains from noise are what plain sampling gives."
    )
    return Section("Samples", text, rows, drawings)


def _copies_section(model: Model, samples: np.ndarray, data: Judged) -> list[Section]:
    if data.train is None:
        return []
    shown = samples[:20]
    nearest, distances = nearest_rows(shown, data.train)
    _, usual = nearest_rows(data.test[:500], data.train)
    pairs = np.concatenate([shown, data.train[nearest]]).reshape(-1, *model.image_shape)
    text = (
        f"Samples above, the nearest training image of each below. They differ in {distances.mean():.0f} pixels on "
        f"average (at least {distances.min():.0f}); test images differ in {usual.mean():.0f} from theirs. A model that "
        "copied its training images would be far below that."
    )
    drawing = draw_images(pairs, title="Samples and their nearest training images", num_columns=20)
    return [Section("Nearest training images", text, figures=[("samples and nearest training images", drawing)])]


def _class_sections(params: RBMParams, samples: dict[str, np.ndarray], data: Judged, seed: int) -> list[Section]:
    """Feature error, class histograms and class changes; nothing without labels."""
    if data.train_labels is None or data.test_labels is None or data.train_grey is None:
        return []
    # Grey images, as an upload is: the features of `rbm features` and of POST /features.
    classifier = fit_classifier(hidden_probs(params, data.train_grey), data.train_labels)
    wrong = np.mean(classifier.predict(hidden_probs(params, data.test_grey)) != data.test_labels)
    features = Section(
        "Features",
        f"Logistic regression on the hidden probabilities errs on {100 * wrong:.2f} % of the test images.",
    )
    num_classes = int(data.train_labels.max()) + 1
    # The reference is classified too, so that the classifier's own leanings cancel.
    shares = {
        name: class_histogram(classifier.predict(hidden_probs(params, states)), num_classes)
        for name, states in {"test images": data.test, **samples}.items()
    }
    rows = [("samples", "largest deviation (points)")]
    rows += [(name, f"{largest_deviation(shares[name], shares['test images']):.1f}") for name in samples]
    changes = _count_changes(params, samples["equilibrium"], classifier, seed)
    text = (
        f"Shares of the classes. A plain chain changes its class {changes:.1f} times in 1,000 steps (looked at every "
        f"{_CHANGE_STEPS} steps, from equilibrium)."
    )
    return [features, Section("Classes", text, rows, [("class histograms", draw_class_shares(shares))])]


def _count_changes(params: RBMParams, start: np.ndarray, classifier: Any, seed: int) -> float:
    visible = start[:_CHANGE_CHAINS]
    seeds = chain_seeds(seed + 3, len(visible))
    classes = [classifier.predict(hidden_probs(params, visible))]
    for number in range(_CHANGE_TIMES):
        visible = np.asarray(
            run_chains(params, visible, num_steps=_CHANGE_STEPS, seeds=seeds, first_step=number * _CHANGE_STEPS)
        )
        classes.append(classifier.predict(hidden_probs(params, visible)))
    return class_changes(np.stack(classes), _CHANGE_STEPS)


def _unit_section(model: Model, data: Judged) -> Section:
    health = hidden_health(model.params, data.test)
    text = (
        f"On test images a hidden unit is on {100 * health.mean_activity:.1f} % of the time; {health.num_dead} of "
        f"{model.params.num_hidden} are dead (below 1 %), {health.num_saturated} saturated (above 99 %)."
    )
    drawings = [
        ("filters", draw_filters(model.params, model.image_shape)),
        ("histograms of the parameters", draw_histograms(model.params)),
    ]
    return Section("Hidden units", text, figures=drawings)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
