"""What a training is asked to do: `TrainConfig`, and presets. No TensorFlow here, so the command line is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from model_core.data_binary import Binarisation

Rule = Literal["sgd", "momentum", "adam"]
Statistic = Literal["probs", "states"]
_CHOICES = {
    "rule_weights": ("sgd", "momentum", "adam"),
    "rule_biases": ("sgd", "momentum", "adam"),
    "sampler": ("cd", "pcd", "ladder"),
    "awake_hidden": ("probs", "states"),
    "asleep_visible": ("probs", "states"),
    "asleep_hidden": ("probs", "states"),
    "chain_mode": ("gibbs", "mean_field"),
    "binarisation": ("stochastic", "fixed", "threshold"),
    "schedule": ("constant", "linear"),
}
_AT_LEAST_ONE = ("num_hidden", "epochs", "batch_size", "num_chains", "chain_steps", "keep_checkpoints")
_NOT_NEGATIVE = (
    *("learning_rate_weights", "learning_rate_biases", "weight_decay", "weight_std", "bias_std", "warmup_updates"),
    *("num_validation", "seed"),
)
_SHARES = ("constant_share", "average_share", "momentum", "offset_rate")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyper-parameters of a training; stored verbatim in the manifest of what it publishes.

    The gradient is of the mean log-likelihood, in nats an image; learning rates multiply it.

    The binary flags of the article are `awake_hidden`, `asleep_visible` and `asleep_hidden`: whether a statistic uses
    states or probabilities. The defaults are Hinton's advice (2012, sections 3.1 to 3.4): probabilities for the
    hidden units, less noise for the same mean, and states for the visible ones. What the chain itself passes on is
    always a sampled state, unless `chain_mode="mean_field"` asks for the article's own, deterministic procedure.
    """

    num_hidden: int = 500
    epochs: int = 30  # passes over the training images, or as long as `updates_an_epoch` says
    updates_an_epoch: int | None = None  # None: one pass
    batch_size: int = 200  # images an update
    sampler: Literal["cd", "pcd", "ladder"] = "pcd"  # chains start at the batch, go on for ever, or are tempered
    num_chains: int = 500  # of "pcd" and "ladder"; "cd" has one an image
    chain_steps: int = 5  # an update, the k of CD-k
    chain_mode: Literal["gibbs", "mean_field"] = "gibbs"
    rule_weights: Rule = "sgd"
    rule_biases: Rule = "sgd"
    learning_rate_weights: float = 0.1
    learning_rate_biases: float = 0.1
    momentum: float = 0.9  # of rule "momentum"
    schedule: Literal["constant", "linear"] = "linear"  # "linear" falls to 0 at the end
    warmup_updates: int = 200  # rates rise linearly from 0
    constant_share: float = 0.3  # of the run, before rates fall
    rate_changes: tuple[tuple[int, float], ...] = ()  # (epochs done, factor): both rates are multiplied from then on
    weight_decay: float = 0.0  # L2, on weights only
    centred: bool = True  # Melchior, Fischer and Wiskott 2016
    offset_rate: float = 0.01  # of the running mean of the hidden units, the hidden offset
    average_share: float = 0.0  # of the run, at its end, over which the published parameters are averaged
    awake_hidden: Statistic = "probs"
    asleep_visible: Statistic = "states"
    asleep_hidden: Statistic = "probs"
    weight_std: float = 0.01
    bias_std: float = 0.0
    data_biases: bool = True  # visible biases start at the log-odds of the pixel means (Hinton 2012, section 8)
    binarisation: Binarisation = "stochastic"
    num_validation: int = 0  # images set aside from the training set
    keep_checkpoints: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}. Received: {getattr(self, name)!r}")
        for names, low, high in ((_AT_LEAST_ONE, 1, None), (_NOT_NEGATIVE, 0, None), (_SHARES, 0, 1)):
            for name in names:
                value = getattr(self, name)
                if not value >= low or (high is not None and not value <= high):
                    limit = f"at least {low}" if high is None else f"between {low} and {high}"
                    raise ValueError(f"`{name}` must be {limit}. Received: {value}")
        if self.updates_an_epoch is not None and self.updates_an_epoch < 1:
            raise ValueError(f"`updates_an_epoch` must be at least 1, or None. Received: {self.updates_an_epoch}")
        if not all(epoch >= 0 and 0 <= factor < math.inf for epoch, factor in self.rate_changes):
            raise ValueError(
                f"`rate_changes` must be pairs of an epoch and a factor, none negative. Received: {self.rate_changes}"
            )
        if self.sampler == "ladder" and self.chain_mode == "mean_field":
            raise ValueError('`sampler="ladder"` exchanges sampled states: it needs `chain_mode="gibbs"`.')

    @property
    def plain(self) -> bool:
        """Whether the statistics are those of the defaults, which are sums of rows and need no matrix product."""
        kinds = (self.awake_hidden, self.asleep_visible, self.asleep_hidden)
        return kinds == ("probs", "states", "probs") and self.chain_mode == "gibbs"

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TrainConfig:
        """The configuration that `dataclasses.asdict` and JSON made `fields` of.

        Raises:
          ValueError: if a field is unknown, as those of another program version are, or has a wrong value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) - known:
            raise ValueError(f"unknown fields {', '.join(sorted(set(fields) - known))}")
        changes = tuple((int(epoch), float(factor)) for epoch, factor in fields.get("rate_changes", ()))
        return cls(**{**fields, "rate_changes": changes})

    def replace(self, **changes: object) -> TrainConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def rate_factor(self, update: int, num_updates: int) -> float:
        """What the learning rates are multiplied by at an update: warm-up, constant, then falling to 0."""
        factor = min(1.0, (update + 1) / self.warmup_updates) if self.warmup_updates else 1.0
        if self.schedule == "linear" and self.constant_share < 1:
            factor *= min(1.0, (1 - update / num_updates) / (1 - self.constant_share))
        return factor


PRESETS: dict[str, TrainConfig] = {
    "recommended": TrainConfig(epochs=360, constant_share=0.2, average_share=0.05, keep_checkpoints=400),
    # Under two minutes on two cores.
    "quick": TrainConfig(epochs=8, num_hidden=256, batch_size=100, num_chains=200, chain_steps=2, constant_share=0.5),
    # The article's settings (O. K. Ernst 2020, final code), with the one change that hidden units are sampled. Its
    # 20 "epochs" of 500 updates of 5 images are 0.83 of a pass.
    "article": TrainConfig(
        num_hidden=784,
        epochs=20,
        updates_an_epoch=500,
        batch_size=5,
        num_chains=5,
        chain_steps=5,
        rule_weights="adam",
        rule_biases="adam",
        learning_rate_weights=1e-3,
        learning_rate_biases=1e-5,
        schedule="constant",
        warmup_updates=0,
        centred=False,
        weight_std=1e-3,
        bias_std=1e-5,
        data_biases=False,
    ),
}
