"""What the tests of the HTTP side share: a tiny published model, an app around it, images, a real server process."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from model_core.model_store import default_checkpoints, publish
from model_core.rbm import RBMParams, checked_params
from service.app import create_app
from service.settings import Settings

NUM_HIDDEN = 12
MEDIA = {
    "png": "image/png", "gif": "image/gif", "webp": "image/webp", "apng": "image/apng", "json": "application/json",
    "npy": "application/x-npy", "csv": "text/csv", "sse": "text/event-stream",
}  # fmt: skip


def tiny_params(seed: int = 0) -> RBMParams:
    """A random 784x12 machine: the shape of MNIST, hardly any work."""
    rng = np.random.default_rng(seed)
    weights, visible_bias = 0.3 * rng.standard_normal((784, NUM_HIDDEN)), rng.standard_normal(784) - 1.0
    return checked_params(weights, visible_bias, np.zeros(NUM_HIDDEN))


def publish_tiny(checkpoints: Path, name: str = "mnist", seed: int = 0) -> Path:
    """Publishes the tiny machine with percentiles that are made up."""
    manifest = {"free_energy_percentiles": np.linspace(-400.0, 100.0, 101).tolist()}
    return publish(checkpoints, name, tiny_params(seed), image_shape=(28, 28), manifest=manifest)


def settings_for(checkpoints: Path, **changes: Any) -> Settings:
    return Settings(checkpoints=checkpoints, threads=1, reload_seconds=0.05, **changes)


@contextmanager
def running_app(settings: Settings, ready: bool = True) -> Iterator[TestClient]:
    """A client of the app in this process, once the model is loaded. Exceptions of the app are answers, not raised."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        if ready:
            wait_until(lambda: client.get("/readyz").status_code == 200, 120.0)
        yield client


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def digit(mode: str = "L") -> Image.Image:
    """A white one on black, 28x28: what MNIST looks like."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 12:16] = 255
    return Image.fromarray(pixels).convert(mode)


def image_bytes(kind: str = "PNG", image: Image.Image | None = None) -> bytes:
    stream = io.BytesIO()
    (image or digit()).save(stream, kind)
    return stream.getvalue()


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def load_npy(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def is_problem(response: Any, status: int, *words: str) -> bool:
    """Asserts that `response` is a whole problem document of this status whose detail has these words."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert {"type", "title", "status", "detail", "instance", "request_id", "error"} <= set(body)
    assert body["status"] == status and body["request_id"] == response.headers["x-request-id"]
    assert "\n" not in body["error"] and "Traceback" not in response.text
    for word in words:
        assert word in body["detail"], body["detail"]
    return True


class ServerProcess:
    """`service.server.serve` in a process of its own, on a free port of the loopback."""

    def __init__(self, checkpoints: Path, before: str = "", **environment: str) -> None:
        """`before` is code that runs in the process first: it plants defects."""
        env = os.environ | {"RBM_CHECKPOINTS": str(checkpoints), "RBM_PORT": "0", "RBM_THREADS": "1"} | environment
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-c", f"{before}\nimport sys; from service.server import serve; sys.exit(serve())"]
        self.log = checkpoints.parent / f"server-{time.monotonic_ns()}.log"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(command, cwd=root, env=env, stderr=stderr)
        wait_until(lambda: self._find_port() or self.process.poll() is not None, 60.0)
        assert self.process.poll() is None, self.log.read_text()
        self.port = self._find_port()

    def _find_port(self) -> int:
        found = re.search(r"serving on http://127\.0\.0\.1:(\d+)", self.log.read_text())
        return int(found[1]) if found else 0

    def connect(self, timeout: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def request(self, head: str, body: bytes = b"", timeout: float = 20.0) -> bytes:
        """Sends one request on a connection of its own; returns all that comes back until the server closes."""
        with self.connect(timeout) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode() + b"Host: x\r\nConnection: close\r\n\r\n" + body)
            return read_all(connection)

    def get(self, path: str) -> bytes:
        return self.request(f"GET {path} HTTP/1.1\n")

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Resident memory now, or its peak (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) / 1024

    def wait_ready(self) -> None:
        wait_until(lambda: b" 200 " in self.get("/readyz")[:20], 120.0)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def serving(checkpoints: Path, before: str = "", **environment: str) -> Iterator[ServerProcess]:
    """A server that is ready, and gone afterwards; the arguments are those of `ServerProcess`."""
    server = ServerProcess(checkpoints, before, **environment)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@contextmanager
def serving_what_ships() -> Iterator[ServerProcess]:
    """A server of the model in this repository, whose log goes elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Path(scratch) / "checkpoints"
        checkpoints.symlink_to(default_checkpoints().absolute())
        with serving(checkpoints) as server:
            yield server


def read_all(connection: socket.socket) -> bytes:
    content = b""
    while chunk := connection.recv(65536):
        content += chunk
    return content
