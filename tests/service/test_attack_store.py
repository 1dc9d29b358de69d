"""A store that changes and breaks under a real server that answers all the while."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_core.manifest import format_manifest
from tests.service.http_helpers import ServerProcess, publish_tiny, serving, wait_until

PATH = "/sample?steps=5&n=2&seed=7&format=npy"
NUM_DAMAGED = 1008  # 8 are broken in other ways, a thousand have a bit flipped
NUM_MANIFESTS = 508  # half of these in the manifest, the younger half in the weights
Answer = tuple[int, str, bytes]  # status, version, body


def ask(server: ServerProcess, path: str = PATH) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("RBM-Version", ""), answer.read()
    finally:
        connection.close()


@pytest.fixture
def own_store(tmp_path: Path) -> Path:
    publish_tiny(tmp_path / "checkpoints", seed=1)
    return tmp_path / "checkpoints"


@pytest.fixture
def server(own_store: Path) -> Iterator[ServerProcess]:
    with serving(own_store, RBM_RELOAD_SECONDS="0.05") as server:
        yield server


@pytest.mark.slow
def test_each_answer_is_one_whole_version_through_100_reloads(own_store: Path, server: ServerProcess) -> None:
    answers: list[Answer] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(server))

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 102):
        publish_tiny(own_store, seed=number)
        wait_until(lambda: ask(server)[1] == str(number))  # noqa: B023 - called before the next round
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in answers} == {200}
    bodies: dict[str, set[bytes]] = {}
    for _, version, body in answers:
        bodies.setdefault(version, set()).add(body)
    for version, seen in bodies.items():
        assert seen == {ask(server, f"{PATH}&version={version}")[2]}  # read from the disk once more
    assert len(bodies) > 50 and len({body for seen in bodies.values() for body in seen}) == len(bodies)


def damage(folder: Path, number: int, dice: np.random.Generator) -> None:
    """Breaks a version in one of the ways of the real world; most flip a bit of the weights or of the manifest."""
    weights, manifest = folder / "model.safetensors", folder / "model.json"
    kinds = {0: "truncate", 1: "empty", 2: "swap", 3: "nan", 4: "folder", 5: "missing", 6: "zero", 7: "manifest"}
    kind = kinds.get(number, "flip")
    content = bytearray(weights.read_bytes())
    if kind == "truncate":
        weights.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "swap":
        weights.write_bytes((folder.parent / "000001" / "model.json").read_bytes())
    elif kind == "nan":
        weights.write_bytes(content[:-4] + np.float32(np.nan).tobytes())
    elif kind == "folder":
        weights.unlink()
        weights.mkdir()
    elif kind == "missing":
        manifest.unlink()
    elif kind == "zero":
        weights.write_bytes(bytes(len(content)))
    elif kind == "manifest":
        manifest.write_text(manifest.read_text().replace("28", "29"))
    else:
        path = manifest if number < NUM_MANIFESTS else weights
        content = bytearray(path.read_bytes())
        place = int(dice.integers(min(len(content), 400 if number % 2 else len(content))))  # half of them in the head
        content[place] ^= 1 << int(dice.integers(8))
        path.write_bytes(content)


@pytest.mark.slow
def test_a_thousand_corrupt_versions_change_nothing(own_store: Path, server: ServerProcess) -> None:
    """Every one of them is found out, whichever file and bit."""
    good, dice = ask(server), np.random.default_rng(0)
    original = own_store / "mnist" / "000001"
    for number in range(NUM_DAMAGED):
        aside = own_store / "mnist" / ".aside"
        shutil.copytree(original, aside)
        manifest = json.loads((aside / "model.json").read_text())
        (aside / "model.json").write_bytes(format_manifest({**manifest, "version": number + 2}))
        damage(aside, number, dice)
        aside.rename(own_store / "mnist" / f"{number + 2:06d}")
        if number % 50 == 0:
            status, _, body = ask(server)
            assert (status, body) == (200, good[2])
    wait_until(lambda: _num_bad(server) == NUM_DAMAGED, 60.0)
    status, _, body = ask(server)
    assert (status, body) == (200, good[2]) and server.process.poll() is None
    assert ask(server, "/readyz")[0] == 200
    publish_tiny(own_store, seed=5)
    wait_until(lambda: ask(server)[1] == str(NUM_DAMAGED + 2))


def _num_bad(server: ServerProcess) -> float:
    lines = server.get("/metrics").decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("rbm_model_bad_versions "))
