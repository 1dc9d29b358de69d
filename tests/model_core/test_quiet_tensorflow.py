"""TensorFlow says nothing that is of no use to anybody, and what is of use is not lost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from model_core.quiet_tensorflow import _without_information

RUN = "from model_core.quiet_tensorflow import tf; print(int(tf.ones(3).numpy().sum()))"


def test_nothing_is_written_beside_the_results() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    ended = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert (ended.stdout, ended.stderr) == ("3\n", "")


def test_what_is_no_information_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImportError), _without_information():
        os.write(2, b"I0000 00:00:1.1 1 port.cc:153] on\nE0000 00:00:1.1 1 x.cc:1] an error\n")
        os.write(2, b"a warning\n")
        raise ImportError
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "E0000 00:00:1.1 1 x.cc:1] an error\na warning\nlater\n"
