"""Kills `rbm train` at random moments, again and again, and compares what it publishes with a run left alone.

    python tests/benchmarks/kill_training.py [KILLS] [pcd|cd|ladder]

Every kill is a SIGKILL between 0 and `LONGEST` seconds after the process has begun to train or, one time in four, right
after it was started. The training has to end, and its weights have to be those of the uninterrupted run, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model_core.model_store import load_model

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    sys.executable,
    "-c",
    "from model_core.cli import main; main()",
    "train",
    "--no-evaluate",
    "--data",
    "digits",
]
SETTINGS = ["--hidden", "16", "--chains", "50", "--batch-size", "50", "--steps", "2", "--set", "keep_checkpoints=3"]
LONGEST = 1.0
EPOCHS_A_KILL = 32  # so that the training outlives its killers


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *SETTINGS, "--checkpoints", str(folder), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def num_rows(folder: Path) -> int:
    history = folder / "digits" / "training" / "history.jsonl"
    return history.read_bytes().count(b"\n") if history.exists() else 0


def finish(process: subprocess.Popen[bytes]) -> None:
    errors = process.communicate()[1].decode()
    if process.returncode:
        sys.exit(f"exit status {process.returncode}:\n{errors}")


def kill_once(process: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> bool:
    """Waits for a random moment; False if the training had ended before."""
    before = num_rows(folder)
    if rng.random() < 0.25:
        time.sleep(rng.random() * 8)
    else:
        while process.poll() is None and num_rows(folder) <= before:
            time.sleep(0.005)
        time.sleep(rng.random() * LONGEST)
    if process.poll() is not None:
        finish(process)
        return False
    process.kill()
    process.communicate()
    return True


def main(num_kills: int, sampler: str) -> None:
    rng = random.Random(0)
    words = ["--sampler", sampler, "--epochs", str(EPOCHS_A_KILL * num_kills)]
    with tempfile.TemporaryDirectory() as scratch:
        alone, killed = Path(scratch) / "alone", Path(scratch) / "killed"
        finish(start(alone, *words))
        kills = 0
        while kills < num_kills:
            begun = (killed / "digits" / "training" / "config.json").exists()
            if not kill_once(start(killed, *words, *(["--resume"] if begun else [])), killed, rng):
                break
            kills += 1
            print(f"{kills} kills, {num_rows(killed)} epochs", file=sys.stderr, flush=True)
        else:
            finish(start(killed, *words, "--resume"))
        pairs = zip(load_model(alone / "digits").params, load_model(killed / "digits").params, strict=True)
        same = all(left.tobytes() == right.tobytes() for left, right in pairs)
    print(json.dumps({"kills": kills, "sampler": sampler, "same_bits": same}))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2] if len(sys.argv) > 2 else "pcd")
