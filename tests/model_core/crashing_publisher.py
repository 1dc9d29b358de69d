"""A program that publishes and is made to die or fail at a chosen moment; driven by test_publish_crashes.

Each line of its input is one publish in a forked child (forking wants a process without threads, hence a program of
its own). It answers each line with the child's exit code, negative for a signal, and the error's text.

    stop          the child stops itself first, and its process id is printed, so that strace can take hold of it
    kill N        it dies by SIGKILL when it is about to make its N-th call of the file layer
    fail N        the N-th call raises ENOSPC, "no space left on device"
    limit N       no file may grow beyond N bytes, so that a write ends half-way
    plain         nothing is done to it
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model_core import publishing
from model_core.model_files import ModelError
from model_core.rbm import RBMParams, checked_params

FAILED, UNHARMED = 3, 4  # exit codes: a ModelError; published, and the moment to strike never came
_CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "pread", "close", "scandir", "listdir")
_write = os.write  # to answer with, uncounted


def small_params() -> RBMParams:
    rng = np.random.default_rng(7)
    return checked_params(rng.standard_normal((6, 5)), rng.standard_normal(6), rng.standard_normal(5))


def strike_at(moment: int, strike: Callable[[], None]) -> Callable[[], int]:
    """Strikes at the call of the file layer numbered `moment`, from 1; returns a counter of the calls so far."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                strike()
            return call(*args, **options)

        return wrapper

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
    fcntl.flock = counted(fcntl.flock)
    builtins.open = counted(builtins.open)
    return lambda: count


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def publish_once(checkpoints: Path, how: str, number: int) -> None:
    """The child's whole life."""
    num_calls = None
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how in ("kill", "fail"):
        num_calls = strike_at(number, die if how == "kill" else fill_the_disk)
    elif how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    try:
        publishing.publish(
            checkpoints, "m", small_params(), image_shape=(2, 3), manifest={}, extra_files={"extra.npz": b"extra" * 9}
        )
    except ModelError as error:
        _write(1, f"{error} ".replace("\n", " ").encode())
        os._exit(FAILED)
    os._exit(0 if num_calls is None or num_calls() >= number else UNHARMED)


def in_place() -> None:
    """A mutant without a temporary folder: the version is visible while it is written."""
    publishing.TEMPORARY_PREFIX = ""


def forgetful() -> None:
    """A mutant that counts the folders there are, and keeps no record of the numbers that it gave out."""

    def next_free(folder: Path, numbers: int) -> int:
        return max((int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()), default=0) + 1

    publishing._spend_number = next_free


MUTANTS: dict[str, Callable[[], None]] = {"none": lambda: None, "in_place": in_place, "forgetful": forgetful}


def main(checkpoints: Path, mutant: str) -> None:
    MUTANTS[mutant]()
    for line in sys.stdin:
        how, _, number = line.strip().partition(" ")
        child = os.fork()
        if child == 0:
            publish_once(checkpoints, how, int(number or 0))
        if how == "stop":
            os.waitpid(child, os.WUNTRACED)
            print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
