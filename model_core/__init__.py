"""Restricted Boltzmann Machines: the model, its chains, its likelihood, its training and its files.

Names are imported on first use, so that `rbm --help` and a bare `import model_core` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_core.chains import run_chains
    from model_core.model_store import Model, load_model
    from model_core.randomness import chain_seeds
    from model_core.rbm import RBMParams, energy, free_energy, hidden_probs, visible_probs

__version__ = "0.1.0"
__all__ = [
    "Model",
    "RBMParams",
    "chain_seeds",
    "energy",
    "free_energy",
    "hidden_probs",
    "load_model",
    "run_chains",
    "visible_probs",
]
_HOME = {
    "Model": "model_store",
    "load_model": "model_store",
    "run_chains": "chains",
    "chain_seeds": "randomness",
    **dict.fromkeys(("RBMParams", "energy", "free_energy", "hidden_probs", "visible_probs"), "rbm"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
