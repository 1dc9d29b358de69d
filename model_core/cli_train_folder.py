"""The folder of one training: who may write in it, what was asked for, and how it has gone so far.

<checkpoints>/<name>/training/config.json      the configuration and the data, written before anything else
<checkpoints>/<name>/training/history.jsonl    a row of numbers an epoch
<checkpoints>/<name>/training/ckpt-<updates>   TensorFlow's checkpoints, and the file `checkpoint` that lists them
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from model_core.cli_support import CliError, write_file
from model_core.presets import TrainConfig

_CONFIG, _HISTORY, _LOCK = "config.json", "history.jsonl", ".lock"


class Plan(NamedTuple):
    """What a training does, and to which data."""

    config: TrainConfig
    data: str  # "mnist", "digits" or an absolute path
    data_sha256: str


class TrainingFolder:
    """Keeps what `rbm train --resume` needs beside TensorFlow's own checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second training out; the lock goes with the process, however that ends.

        Raises:
          CliError: if another process has it.
        """
        new_folders = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / _LOCK, "a+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CliError(
                    f"Another `rbm train` is at work in {self.path}. Wait until it ends, or train under another --name."
                ) from None
            try:
                yield
            finally:
                if os.listdir(self.path) == [_LOCK]:  # nothing came of it
                    (self.path / _LOCK).unlink()
                    with suppress(OSError):  # something else is in one of them by now
                        for folder in new_folders:
                            folder.rmdir()

    def has_checkpoints(self) -> bool:
        return any(self.path.glob("ckpt-*"))

    def read_plan(self) -> Plan | None:
        """What was asked for when the training began; None if nothing is written here.

        Raises:
          CliError: if the file is damaged, or of another version of this program.
        """
        path = self.path / _CONFIG
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            config = TrainConfig.from_json(found["config"])
            return Plan(config, str(found["data"]), str(found["data_sha256"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CliError(
                f"{path} cannot be read ({error!r}): it is damaged or of another version. Mend it, or begin anew with "
                "--fresh."
            ) from error

    def write_plan(self, plan: Plan) -> None:
        content = {**plan._asdict(), "config": dataclasses.asdict(plan.config)}
        write_file(self.path / _CONFIG, (json.dumps(content, indent=2) + "\n").encode())

    def clear(self) -> None:
        """Removes a training, its plan last, so that what a killed clearing leaves is still known for one."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == _CONFIG):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()

    def history(self) -> list[dict[str, Any]]:
        """The rows so far; a row that a crash has torn is left out."""
        path = self.path / _HISTORY
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("update"), int)]

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        lines = (json.dumps(_finite(row)) + "\n" for row in rows)
        write_file(self.path / _HISTORY, "".join(lines).encode())

    def append_history(self, row: dict[str, Any]) -> None:
        with open(self.path / _HISTORY, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinities: such a number is left out."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
