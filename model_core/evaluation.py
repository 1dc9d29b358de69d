"""log Z measured in every way there is, and what to believe of it, in words."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from model_core.annealing import numba_annealer, spread_betas, thermodynamic_length
from model_core.exact import MAX_ENUMERATED_UNITS, log_partition
from model_core.likelihood import Estimate, bennett_log_ratio, estimate_log_z_ais, estimate_log_z_reverse
from model_core.rbm import RBMParams
from model_core.tempering import Tempered, equilibrium_samples

_ERRORS_ALLOWED = 3.0  # standard errors between two figures that still agree
_SLACK = 0.05  # nats; below this nobody needs to worry
_SMALL_SAMPLE_SHARE = 0.1  # of the chains: with a smaller effective sample size an error bar cannot be trusted
_STUCK_BELOW = 0.1  # swap acceptance
_NARROW = 0.5  # nats between the directions, and still a figure to quote

_log = logging.getLogger(__name__)


class LogZReport(NamedTuple):
    """Every estimate of one model's log Z, nats."""

    ais: Estimate  # low on average
    reverse: Estimate  # high on average, if its samples are at equilibrium
    tempered: Tempered  # the equilibrium samples, and their own figure by Bennett's ratio along the rungs
    combined: float  # Bennett's ratio of the forward and the reverse weights: less biased than either
    combined_error: float
    exact: float | None  # by enumeration, where one layer has at most 20 units

    @property
    def gap(self) -> float:
        """Reverse less forward: how far apart the two stochastic bounds are."""
        return self.reverse.log_z - self.ais.log_z

    @property
    def gap_error(self) -> float:
        return float(np.hypot(self.ais.error, self.reverse.error))

    @property
    def conservative(self) -> float:
        """The log Z to quote: exact if known, else the larger of the two directions, the lower likelihood."""
        return self.exact if self.exact is not None else max(self.ais.log_z, self.reverse.log_z)

    def warnings(self) -> list[str]:
        """What speaks against the figures, a sentence each; empty if nothing does."""
        found = []
        if abs(self.gap) > _ERRORS_ALLOWED * self.gap_error + _SLACK:
            found.append(self._about_the_gap())
        for name, estimate in (("forward", self.ais), ("reverse", self.reverse)):
            if estimate.effective_sample_size < max(3.0, _SMALL_SAMPLE_SHARE * len(estimate.log_weights)):
                found.append(
                    f"Few chains carry the {name} estimate (effective sample size "
                    f"{estimate.effective_sample_size:.1f} of {len(estimate.log_weights)}): "
                    "its error bar is too small. Use more --betas."
                )
        difference = abs(self.tempered.log_z - self.combined)
        if difference > _ERRORS_ALLOWED * np.hypot(self.tempered.error, self.combined_error) + 2 * _SLACK:
            found.append(f"Tempering puts log Z {difference:.2f} nats from the two, at {self.tempered.log_z:.2f}.")
        worst = float(self.tempered.swap_acceptance.min())
        if worst < _STUCK_BELOW:
            found.append(
                f"Two neighbours of the tempering ladder hardly exchange states (acceptance {worst:.2f}): the samples "
                "of the reverse estimate may not be at equilibrium."
            )
        for name, estimate in (("forward", self.ais), ("reverse", self.reverse)):
            if self.exact is not None and abs(estimate.log_z - self.exact) > 5 * estimate.error + _SLACK:
                found.append(f"The {name} estimate misses the exact log Z by {estimate.log_z - self.exact:+.2f} nats.")
        return found

    def _about_the_gap(self) -> str:
        if self.gap > 0:
            return (
                f"The two directions disagree by {self.gap:.2f} nats, more than their errors allow "
                f"(+-{self.gap_error:.2f}). AIS alone would flatter this model. Use more --betas."
            )
        return (
            f"The reverse estimate lies {-self.gap:.2f} nats below the forward one, more than their errors allow "
            f"(+-{self.gap_error:.2f}): its samples miss part of the model. Use more --betas and --chains."
        )

    def verdict(self) -> str:
        """What to believe, in one sentence."""
        if self.exact is not None:
            return "log Z is exact, by enumeration of the smaller layer: the figures are exact too."
        if self.warnings():
            return (
                "Do not quote these figures as they are; see the warnings. If one is needed, the lower likelihood is "
                "the safer one."
            )
        spread = max(abs(self.gap), self.gap_error)
        if spread < _NARROW:
            return f"The two directions agree: believe the figures to about {max(spread, 0.01):.2f} nats."
        return (
            f"The two directions agree, but only because both are uncertain by about {spread:.1f} nats: "
            "use more --betas or --chains before quoting a figure."
        )


def measure_log_z(
    params: RBMParams,
    base_visible_bias: np.ndarray,
    *,
    num_chains: int = 100,
    num_betas: int = 15_000,
    seed: int = 0,
    samples: np.ndarray | None = None,
) -> LogZReport:
    """Estimates log Z forwards, backwards and by tempering, and exactly where that is possible.

    The temperatures follow a pilot run (`thermodynamic_length`). The reverse direction starts from `samples`, or else
    from those of parallel tempering. Cost: about 2 * num_chains * num_betas + 200,000 * rungs chain-steps;
    half a minute for the defaults at 784x500 on two cores.

    Args:
      params: the model.
      base_visible_bias: float [visible], see `annealing.base_rate_bias`.
      num_chains: at least 4.
      num_betas: temperatures after the first.
      seed: the same seed gives the same report.
      samples: equilibrium samples of the model, 0 or 1, [chains, visible]; such as the published reservoir gives. A
        ladder of temperatures can lack digits that part from the rest while the model is still hot.
    """
    if num_chains < 4 or num_betas < 1:
        raise ValueError(f"At least 4 chains and 1 temperature are needed. Received: {num_chains}, {num_betas}")
    engine = numba_annealer()
    grid, lengths = thermodynamic_length(params, base_visible_bias, seed=seed, engine=engine)
    betas = spread_betas(grid, lengths, num_betas)
    _log.info("annealing %d chains through %d temperatures", num_chains, num_betas)
    ais = estimate_log_z_ais(
        params, base_visible_bias=base_visible_bias, num_chains=num_chains, betas=betas, seed=seed, engine=engine
    )
    _log.info("drawing equilibrium samples by parallel tempering")
    tempered = equilibrium_samples(params, num_chains, base_visible_bias=base_visible_bias, seed=seed, engine=engine)
    _log.info("annealing them backwards")
    starts = tempered.samples if samples is None else samples
    reverse = estimate_log_z_reverse(
        params, starts, base_visible_bias=base_visible_bias, betas=betas, seed=seed, engine=engine
    )
    # The log-weights hold log Z of the base model, with opposite signs, so their Bennett ratio is log Z itself.
    combined, combined_error = bennett_log_ratio(ais.log_weights, reverse.log_weights)
    small = min(params.num_visible, params.num_hidden) <= MAX_ENUMERATED_UNITS
    exact = log_partition(params) if small else None
    return LogZReport(ais, reverse, tempered, combined, combined_error, exact)
