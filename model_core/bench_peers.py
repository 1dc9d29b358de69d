"""The same work in other people's libraries, where they are installed: `pip install torch rbms scikit-learn`.

Each is called as its own documentation does, at its best: float32, no gradients, as many threads as there are cores,
and nothing of ours inside the timing. A library that is not installed is left out.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from model_core.bench import Work
from model_core.rbm import RBMParams


def gibbs_works(params: RBMParams, start: np.ndarray) -> dict[str, Work]:
    """Chains of `start` (uint8 [chains, visible]) advanced by PyTorch and scikit-learn."""
    works = {}
    if find_spec("torch"):
        works["PyTorch"] = _torch_gibbs(params, start)
    if find_spec("sklearn"):
        works["scikit-learn"] = _sklearn_gibbs(params, start)
    return works


def _torch() -> Any:
    torch = import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def _torch_gibbs(params: RBMParams, start: np.ndarray) -> Work:
    torch = _torch()
    weights, visible_bias, hidden_bias = (torch.from_numpy(np.array(array)) for array in params)
    transposed = weights.T.contiguous()
    first = torch.from_numpy(start.astype(np.float32))

    def advance(num_steps: int) -> None:
        visible = first
        with torch.inference_mode():
            for _ in range(num_steps):
                hidden = torch.bernoulli(torch.sigmoid(torch.addmm(hidden_bias, visible, weights)))
                visible = torch.bernoulli(torch.sigmoid(torch.addmm(visible_bias, hidden, transposed)))

    return advance


def _sklearn_gibbs(params: RBMParams, start: np.ndarray) -> Work:
    from sklearn.neural_network import BernoulliRBM

    machine = BernoulliRBM(n_components=params.num_hidden, random_state=0)
    machine.components_ = np.ascontiguousarray(params.weights.T)
    machine.intercept_visible_, machine.intercept_hidden_ = params.visible_bias, params.hidden_bias
    first = start.astype(np.float32)

    def advance(num_steps: int) -> None:
        visible = first
        for _ in range(num_steps):
            visible = machine.gibbs(visible)

    return advance


def sklearn_training(images: np.ndarray, *, num_hidden: int, batch_size: int, rate: float) -> Work | None:
    """PCD-1 with as many chains as a batch has images, the only kind it has; one repetition is one batch.

    Args:
      images: float32 0 or 1, [images, visible]. `fit` goes through them in order, and starts with a new model; it
        keeps float32, which `partial_fit` does not.
    """
    if not find_spec("sklearn"):
        return None
    from sklearn.neural_network import BernoulliRBM

    machine = BernoulliRBM(n_components=num_hidden, learning_rate=rate, batch_size=batch_size, n_iter=1, random_state=0)

    def train(num_updates: int) -> None:
        passes, rest = divmod(num_updates * batch_size, len(images))
        for part in [images] * passes + ([images[:rest]] if rest else []):
            machine.fit(part)

    return train


def rbms_trainings(
    images: np.ndarray, *, num_hidden: int, batch_size: int, num_chains: int, num_steps: int, rate: float
) -> dict[str, Work]:
    """PCD-k of `rbms` 0.5: as the package trains (centred, normalised), and plain; a repetition is an update."""
    if not (find_spec("rbms") and find_spec("torch")):
        return {}
    works: dict[str, Work] = {}
    for stock in (True, False):
        trainer = _RbmsTrainer(images, num_hidden, batch_size, num_chains, num_steps, rate)
        works["rbms, stock" if stock else "rbms, plain"] = trainer.stock if stock else trainer.plain
    return works


class _RbmsTrainer:
    """One model of `rbms` with its chains and its optimiser; weights start at 0.01, visible biases at the log-odds."""

    def __init__(
        self, images: np.ndarray, num_hidden: int, batch_size: int, num_chains: int, num_steps: int, rate: float
    ) -> None:
        torch = _torch()
        machines = import_module("rbms.bernoulli_bernoulli.classes")
        datasets = import_module("rbms.dataset.dataset_class")
        count = len(images)
        self._data = datasets.RBMDataset(
            data=images, labels=-np.ones(count), weights=np.ones(count), names=np.arange(count),
            dataset_name="bench", is_binary=True, device="cpu", dtype=torch.float32,
        )  # fmt: skip
        self._model = machines.BBRBM.init_parameters(
            num_hiddens=num_hidden, dataset=self._data, device="cpu", dtype=torch.float32, var_init=1e-2
        )
        self._model.init_grad()
        self._chains = self._model.init_chains(num_samples=num_chains)
        self._optimiser = torch.optim.SGD(self._model.parameters(), lr=rate, maximize=True)
        self._batch_size, self._num_steps = batch_size, num_steps

    def stock(self, num_updates: int) -> None:
        torch, training = _torch(), import_module("rbms.training.pcd")
        with torch.no_grad():
            for _ in range(num_updates):
                images, weights = self._next_batch(torch)
                self._chains, _ = training.fit_batch_pcd(
                    batch=(images, weights), parallel_chains=self._chains, params=self._model,
                    gibbs_steps=self._num_steps, beta=1.0, centered=True,
                )  # fmt: skip
                self._optimiser.step()

    def plain(self, num_updates: int) -> None:
        torch = _torch()
        with torch.no_grad():
            for _ in range(num_updates):
                images, weights = self._next_batch(torch)
                awake = self._model.init_chains(num_samples=len(images), weights=weights, start_v=images)
                self._chains = self._model.sample_state(chains=self._chains, n_steps=self._num_steps, beta=1.0)
                self._model.compute_gradient(data=awake, chains=self._chains, centered=False)
                self._optimiser.step()

    def _next_batch(self, torch: Any) -> tuple[Any, Any]:
        rows = torch.randperm(len(self._data))[: self._batch_size]  # as the package itself draws batches
        self._optimiser.zero_grad(set_to_none=False)
        return self._data.data[rows], self._data.weights[rows]
