"""A real `rbm serve` process to measure: started on a free port, watched from outside, stopped by SIGTERM."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_START_SECONDS, _STOP_SECONDS = 60.0, 60.0
_SERVE = "from model_core.cli import main; main()"


class ServerError(RuntimeError):
    """The server did not start, or is not one that may be loaded; says why."""


@dataclass(frozen=True)
class ServerProcess:
    """Where a server listens, and its process where that is known."""

    host: str
    port: int
    pid: int | None = None

    def memory_mb(self) -> float | None:
        """Resident memory now."""
        return self._status("VmRSS")

    def peak_memory_mb(self) -> float | None:
        """The most resident memory since `forget_peak`, or since the start."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Starts a new peak; where the system does not allow it, the old one stands."""
        if self.pid is not None:
            try:
                Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")
            except OSError:
                return

    def _status(self, field: str) -> float | None:
        if self.pid is None:
            return None
        try:
            text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        except OSError:
            return None
        found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) / 1024 if found else None


def existing(url: str) -> ServerProcess:
    """A server that runs already; loopback only, for this bench is an attack on anybody else's."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ServerError(f"{url}: only http://127.0.0.1:PORT can be measured; the bench overloads what it measures.")
    return ServerProcess(parts.hostname, parts.port or 80)


@contextmanager
def started(checkpoints: Path) -> Iterator[ServerProcess]:
    """Starts `rbm serve` with its defaults on a free port, waits until it is ready, and stops it in the end."""
    allow_many_sockets()
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-c", _SERVE, "serve", "--port", "0", "--checkpoints", str(checkpoints)]
        process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + _START_SECONDS
            server = ServerProcess("127.0.0.1", _port(process, log.fileno(), deadline), process.pid)
            wait_until_ready(server, deadline)
            yield server
        finally:
            _stop(process)


def wait_until_ready(server: ServerProcess, deadline: float) -> None:
    """Returns when `/readyz` says 200. Raises ServerError if it does not until `deadline` (`time.monotonic`)."""
    why = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{server.host}:{server.port}/readyz", timeout=2):
                return
        except urllib.error.HTTPError as error:
            why = error.read(500).decode(errors="replace")
        except OSError as error:
            why = str(error)
        time.sleep(0.1)
    raise ServerError(f"The server at port {server.port} did not become ready: {why}")


def _port(process: subprocess.Popen[bytes], log: int, deadline: float) -> int:
    """The port that the server says it took."""
    text = ""
    while time.monotonic() < deadline and process.poll() is None:
        with open(f"/proc/self/fd/{log}", encoding="utf-8", errors="replace") as file:
            text = file.read()
        if found := re.search(r"http://[^:\s]+:(\d+)", text):
            return int(found[1])
        time.sleep(0.05)
    raise ServerError(f"`rbm serve` did not start. It said: {text[-500:] or 'nothing'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def allow_many_sockets() -> None:
    """Overload needs a connection for each request that waits: raises the soft limit of open files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
