"""TensorFlow, without what it writes to stderr on every computer that has no GPU.

Its first lines come while it is imported, before any setting of it counts; so they are held back, and what is no mere
information is written after all. `TF_CPP_MIN_LOG_LEVEL` of the environment counts: below 3 everything is shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

_SILENT = "3"  # "2" shows as an error that there is no GPU
_INFORMATION = re.compile(rb"I\d{4} |WARNING: All log messages before absl")


@contextlib.contextmanager
def _without_information() -> Iterator[None]:
    """Holds back what is written to file descriptor 2 meanwhile, and then writes the lines that matter."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _INFORMATION.match(line):
                    os.write(2, line)


if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _SILENT) == _SILENT:
    with _without_information():
        import tensorflow as tf
else:
    import tensorflow as tf

__all__ = ["tf"]
