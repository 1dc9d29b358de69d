"""Compiled code is kept for the next process, and never outlives the sources that it was made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import model_core

PROBE = """
from model_core.kernels_draws import exp_minus, jit

@jit
def probe(x):
    return exp_minus(x)
"""
RUN = """
import numpy as np
from model_core.kernels_probe import probe
value = probe(np.float32(0.0))
print(value, sum(probe.stats.cache_hits.values()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the sources with one small kernel that calls into another file."""
    package = tmp_path / "release" / "model_core"
    shutil.copytree(Path(model_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    (package / "kernels_probe.py").write_text(PROBE)
    return package


def run(package: Path, before: str = "") -> tuple[float, int]:
    """What the probe returns in a new process, and how often its code was found in the cache."""
    cache = {"XDG_CACHE_HOME": str(package.parent / "cache"), "PYTHONPATH": str(package.parent)}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | cache
    command = [sys.executable, "-c", before + RUN]
    done = subprocess.run(command, env=environment, cwd=package.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    value, hits = done.stdout.split()
    return float(value), int(hits)


def test_code_is_kept_until_any_of_its_sources_changes(package: Path) -> None:
    assert run(package) == (1.0, 0)
    assert run(package) == (1.0, 1)
    draws = package / "kernels_draws.py"
    text = draws.read_text()
    assert "series = np.float32(1.0) + rest * series\n    return" in text
    draws.write_text(text.replace("1.0) + rest * series\n    return", "3.0) + rest * series\n    return"))
    assert run(package) == (3.0, 0)  # with Numba's own look at files it would still be 1
    draws.write_text(text)
    assert run(package) == (1.0, 1)  # back to the older release


def test_code_is_kept_in_the_users_cache_where_the_package_cannot_be_written(package: Path) -> None:
    (package / "__pycache__").write_text("nothing can be put here")
    assert run(package) == (1.0, 0)
    assert run(package) == (1.0, 1)
    assert list(package.parent.joinpath("cache", "rbm-dream").rglob("*.nbi"))


def test_without_any_place_it_is_compiled_anew(package: Path) -> None:
    (package / "__pycache__").write_text("nothing can be put here")
    (package.parent / "cache").write_text("nor here")
    assert run(package) == (1.0, 0)
    assert run(package) == (1.0, 0)


def test_damaged_files_are_replaced(package: Path) -> None:
    assert run(package) == (1.0, 0)
    for kind in ("nbi", "nbc"):
        assert run(package) == (1.0, 1)
        (damaged,) = package.rglob(f"*probe-*.{kind}")
        damaged.write_bytes(damaged.read_bytes()[:-50])
        assert run(package) == (1.0, 0)
    assert run(package) == (1.0, 1)


def test_on_a_full_disk_it_is_compiled_anew(package: Path) -> None:
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
    assert run(package, full) == (1.0, 0)
    assert run(package, full) == (1.0, 0)
    assert run(package) == (1.0, 0) and run(package) == (1.0, 1)
