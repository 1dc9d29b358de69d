"""Sends every file of a folder, and mutants of it, to every route that takes an image, in a real `rbm serve`.

    python tests/benchmarks/hostile_images.py FOLDER [MUTANTS]

FOLDER holds odd and hostile files that others collected: the test images of Pillow, libpng, libtiff, ImageMagick,
exiv2, Cairo, ... as their sources hold them. MUTANTS are made of each file: cut short, bits flipped, bytes overwritten.

The line: no answer of 5xx, the process lives and answers others, no answer takes a second, memory under 400 MB. What
took longer is asked for four times more, and the quickest counts: on a shared computer anything may be slow.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.service.http_helpers import ServerProcess, image_bytes, serving_what_ships

MAX_BYTES = 3 * 2**20  # beyond the service's limit, so that refusing a long body is tried as well
MAX_SECONDS, MAX_MEMORY_MB = 1.0, 400
ROUTES = ("/dream?steps=2&view=pair", "/features", "/energy", "/inpaint?steps=2")
TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".bmp": "bmp", ".webp": "webp"}
BOUNDARY = "a-boundary-that-no-file-holds"


def form(fields: dict[str, bytes]) -> bytes:
    parts = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in fields.items()
    )
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def mutant(body: bytes, dice: np.random.Generator) -> bytes:
    """Cut short, with flipped bits, or with a run of bytes set to 0 or 255; a third of them near the head."""
    changed, reach = bytearray(body), len(body) if dice.integers(3) else min(len(body), 200)
    kind = dice.integers(3)
    if kind == 0:
        del changed[int(dice.integers(reach)) :]
    elif kind == 1:
        for place in dice.integers(0, reach, dice.integers(1, 9)):
            changed[place] ^= 1 << int(dice.integers(8))
    else:
        place = int(dice.integers(reach))
        changed[place : place + 4] = bytes([255 * int(dice.integers(2))]) * 4
    return bytes(changed)


class Attacker:
    """One client, and what it saw."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.slowest = (0.0, "")
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def post(self, route: str, body: bytes, content_type: str) -> tuple[int, float]:
        """Status (0: the server closed the connection under a body that it refused) and seconds."""
        began = time.perf_counter()
        try:
            self._connection.request("POST", route, body, {"Content-Type": content_type})
            answer = self._connection.getresponse()
            answer.read()
            return answer.status, time.perf_counter() - began
        except (ConnectionError, http.client.HTTPException):
            self._connection.close()
            return 0, time.perf_counter() - began

    def attack(self, name: str, body: bytes, suffix: str) -> None:
        for route in ROUTES:
            content, content_type = body, f"image/{TYPES[suffix]}" if suffix in TYPES else "application/octet-stream"
            if route.startswith("/inpaint"):  # every other time the file is the mask
                fields = (
                    {"file": body, "mask": image_bytes()} if len(body) % 2 else {"file": image_bytes(), "mask": body}
                )
                content, content_type = form(fields), f"multipart/form-data; boundary={BOUNDARY}"
            status, seconds = self.post(route, content, content_type)
            if seconds > MAX_SECONDS:
                seconds = min(seconds, *(self.post(route, content, content_type)[1] for _ in range(4)))
            self.statuses[status] += 1
            self.slowest = max(self.slowest, (seconds, f"{route} {name}"))
            if status >= 500 or seconds > MAX_SECONDS or (status == 0 and len(body) < 2**20):
                self.failures.append(f"{status} after {seconds:.2f} s: {route} {name}")


def bodies(folder: Path, num_mutants: int) -> Iterator[tuple[str, bytes, str]]:
    dice = np.random.default_rng(0)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and 0 < path.stat().st_size <= MAX_BYTES:
            body = path.read_bytes()
            yield path.name, body, path.suffix.lower()
            for number in range(num_mutants):
                yield f"{path.name}, mutant {number}", mutant(body, dice), path.suffix.lower()


def main(folder: Path, num_mutants: int) -> int:
    with serving_what_ships() as server:
        attacker, num_bodies, began = Attacker(server), 0, time.perf_counter()
        for num_bodies, (name, body, suffix) in enumerate(bodies(folder, num_mutants), 1):
            attacker.attack(name, body, suffix)
            if num_bodies % 1000 == 0:
                print(f"{num_bodies} bodies, {dict(attacker.statuses)}", file=sys.stderr, flush=True)
        alive = server.process.poll() is None and attacker.post("/features", image_bytes(), "image/png")[0] == 200
        peak = server.memory_mb("VmHWM") if alive else 0.0
        errors = server.log.read_text().count("Traceback")
    found = {"bodies": num_bodies, "seconds": round(time.perf_counter() - began), "statuses": attacker.statuses}
    found |= {"slowest": attacker.slowest, "peak_mb": round(peak), "alive": alive, "tracebacks_logged": errors}
    print(json.dumps(found | {"failures": attacker.failures}, indent=2))
    return int(bool(attacker.failures) or not alive or peak > MAX_MEMORY_MB)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
