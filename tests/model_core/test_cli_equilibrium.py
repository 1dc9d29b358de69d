"""`rbm sample --method equilibrium`: the bytes of the route, and clear words where it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from model_core import cli
from model_core.equilibrium import LADDER_FILE, Ladder, format_ladder
from model_core.model_store import publish
from model_core.rbm import checked_params
from service.app import create_app
from service.settings import Settings

SHAPE = (8, 8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("store")
    params = checked_params(rng.standard_normal((64, 16)), rng.standard_normal(64), rng.standard_normal(16))
    ladder = format_ladder(Ladder((params,), rng.integers(0, 2, (50, 64), np.uint8), 20))
    publish(folder, "mnist", params, image_shape=SHAPE, manifest={}, extra_files={LADDER_FILE: ladder})
    publish(folder, "plain", params, image_shape=SHAPE, manifest={})
    return folder


@pytest.fixture
def here(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RBM_CHECKPOINTS", str(store))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rbm", "sample", "--method", "equilibrium", *(str(word) for word in words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("query", ["n=3", "n=2&every=6&format=npy", "n=2&view=strip&output=samples", "format=json"])
def test_it_gives_the_bytes_of_the_route(
    store: Path, here: None, query: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with TestClient(create_app(Settings(checkpoints=store))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        answer = client.get(f"/sample?method=equilibrium&seed=5&{query}")
    assert answer.status_code == 200, answer.text
    flags = [word for pair in query.split("&") for word in (f"--{pair.split('=')[0]}", pair.split("=")[1])]
    assert run(monkeypatch, "--seed", 5, *flags) == 0
    assert capsysbinary.readouterr().out == answer.content


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--steps", "5"], 1, "leave `steps` out"),
        (["--temperature", "2"], 1, "`temperature`"),
        (["--model", "plain"], 1, "without a ladder"),
        (["--n", "65"], 2, "--n"),
    ],
)
def test_what_cannot_be_is_refused(
    here: None,
    words: list[str],
    status: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *words) == status
    assert reason in " ".join(capsys.readouterr().err.split())
