"""One number for many Numba chains; `python -m tests.model_core.chain_hash` prints it in a process of its own."""

from __future__ import annotations

import hashlib

import numpy as np

from model_core.engine_numba import NumbaEngine
from model_core.randomness import chain_seeds, noise
from model_core.rbm import checked_params
from tests.model_core.reference import make_chains


def hash_of_chains() -> str:
    """The sha256 of states and probabilities of runs on machines with narrow and with wide weights."""
    digest, engine = hashlib.sha256(), NumbaEngine(worth_sharing=0)
    for seed, scale in ((0, 0.2), (1, 4.0)):
        rng, seeds = np.random.default_rng(seed), chain_seeds(seed, 33)
        weights = scale * rng.standard_normal((133, 71))
        params = checked_params(weights, rng.standard_normal(133), rng.standard_normal(71))
        prepared = engine.prepare(params)
        for options in ({}, {"temperature": 0.3}, {"clamp": rng.random(133) < 0.4}):
            batch = make_chains(params, noise(seeds, 133), seeds=seeds, num_steps=60, **options)
            for array in engine.advance(prepared, batch):
                digest.update(array.tobytes())
        batch = make_chains(params, rng.random((33, 133)), seeds=seeds, num_steps=5, mode="mean_field")
        digest.update(engine.advance_mean_field(prepared, batch)[0].tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(hash_of_chains())
