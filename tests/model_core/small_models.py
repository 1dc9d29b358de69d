"""Small models on disk, for the tests of the model store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from model_core.manifest import manifest_sha256
from model_core.model_store import publish
from model_core.rbm import RBMParams, checked_params

FIELDS = [
    *("format_version", "name", "version", "created_at", "image_shape", "num_visible", "num_hidden", "files"),
    *("training", "dataset", "metrics", "free_energy_percentiles", "software", "licence", "sha256"),
]


def make_params(num_visible: int = 6, num_hidden: int = 4, seed: int = 0) -> RBMParams:
    rng = np.random.default_rng(seed)
    shapes = ((num_visible, num_hidden), num_visible, num_hidden)
    return checked_params(*(rng.standard_normal(shape) for shape in shapes))


def same(left: RBMParams, right: RBMParams) -> bool:
    return all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in zip(left, right, strict=True))


def change_manifest(folder: Path, /, **fields: Any) -> None:
    """Rewrites fields of a manifest, the size and hash of the weights that lie beside it, and its own hash."""
    path, weights = folder / "model.json", (folder / "model.safetensors").read_bytes()
    manifest = json.loads(path.read_text())
    manifest["files"]["model.safetensors"] = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    manifest |= fields
    path.write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))


def publish_small(checkpoints: Path) -> Path:
    """The first version of a model "m" of 6 visible and 4 hidden units, with a further file `ladder.npz`."""
    manifest = {
        "free_energy_percentiles": np.linspace(-9, 9, 101),
        "metrics": {"gap": np.float32(0.5)},
        "licence": "MIT",
    }
    return publish(
        checkpoints, "m", make_params(), image_shape=(2, 3), manifest=manifest, extra_files={"ladder.npz": b"rungs"}
    )
