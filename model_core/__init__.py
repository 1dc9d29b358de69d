"""Restricted Boltzmann Machines: the model, its chains, its likelihood, its training and its files."""

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
