"""The `rbm` command: the bytes of the routes, data and messages on their own streams, exit status, quick start."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from model_core import cli, cli_chains, cli_models
from model_core.cli_support import CliError, expected_failure
from model_core.model_store import publish
from model_core.rbm import RBMParams, checked_params, hidden_probs

ROOT = Path(__file__).parents[2]
SHAPE = (8, 8)
HISTORY = [{"epoch": 1, "gap": 0.1}, {"epoch": 2, "gap": 0.2}]


class Done(NamedTuple):
    status: int
    out: bytes
    err: str


Rbm = Callable[..., Done]


@pytest.fixture(scope="module")
def params() -> RBMParams:
    rng = np.random.default_rng(0)
    return checked_params(rng.standard_normal((64, 16)), rng.standard_normal(64), rng.standard_normal(16))


@pytest.fixture(scope="module")
def store(params: RBMParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    manifest = {"dataset": {"name": "digits"}, "training": {"history": HISTORY}}
    publish(folder, "mnist", params, image_shape=SHAPE, manifest=manifest)
    return folder


@pytest.fixture
def rbm(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Rbm:
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RBM_CHECKPOINTS", str(store))

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rbm", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsysbinary.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err.decode())

    return run


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[8:32, 18:23] = 255
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def http(store: Path):  # type: ignore[no-untyped-def]
    """A client of the app that serves the same models."""
    from starlette.testclient import TestClient

    from service.app import create_app
    from service.settings import Settings

    with TestClient(create_app(Settings(checkpoints=store))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


@pytest.mark.parametrize(
    "query", ["", "n=4&steps=30&temperature=2", "view=strip", "every=7&format=npy", "output=samples"]
)
def test_sample_gives_the_bytes_of_the_route(rbm: Rbm, http, query: str) -> None:  # type: ignore[no-untyped-def]
    answer = http.get(f"/sample?seed=5&{query}")
    assert answer.status_code == 200
    flags = [word for pair in query.split("&") if pair for word in (f"--{pair.split('=')[0]}", pair.split("=")[1])]
    done = rbm("sample", "--seed", 5, *flags)
    assert done.status == 0, done.err
    assert done.out == answer.content


@pytest.mark.parametrize("mode", ["gibbs", "mean_field"])
def test_dream_gives_the_bytes_of_the_route(rbm: Rbm, http, picture: Path, mode: str) -> None:  # type: ignore[no-untyped-def]
    answer = http.post(f"/dream?seed=5&mode={mode}&format=json&every=5", content=picture.read_bytes())
    assert answer.status_code == 200, answer.text
    done = rbm("dream", picture, "--seed", 5, "--mode", mode, "--json", "--every", 5)
    assert done.out == answer.content


@pytest.mark.parametrize("kind", ["probabilities", "logits", "samples"])
def test_features_give_the_bytes_of_the_route(rbm: Rbm, http, picture: Path, kind: str) -> None:  # type: ignore[no-untyped-def]
    answer = http.post(f"/features?seed=5&kind={kind}&format=csv", content=picture.read_bytes())
    assert answer.status_code == 200, answer.text
    assert rbm("features", picture, "--kind", kind, "--seed", 5, "--format", "csv").out == answer.content


def test_features_of_arrays_are_the_hidden_probs(rbm: Rbm, params: RBMParams, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 2, (3, *SHAPE), np.uint8)
    np.save(tmp_path / "images.npy", images)
    assert rbm("features", "images.npy", "-o", "features.npy").status == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "features.npy"), hidden_probs(params, images.reshape(3, 64)), rtol=1e-6
    )


def test_the_ending_of_the_file_chooses_the_format(rbm: Rbm, tmp_path: Path) -> None:
    done = rbm("sample", "--steps", 2, "--seed", 1, "-o", "sheet.json")
    assert (done.status, done.out) == (0, b"")
    assert json.loads((tmp_path / "sheet.json").read_text())["steps"] == 2
    assert "--seed 1" in done.err and "sheet.json" in done.err
    assert rbm("sample", "-o", "sheet.bmp").status == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.json"]


def test_a_seed_is_drawn_and_told(rbm: Rbm) -> None:
    first, second = rbm("sample", "--steps", 1, "--json"), rbm("sample", "--steps", 1, "--json")
    assert json.loads(first.out)["seed"] != json.loads(second.out)["seed"]
    assert f"--seed {json.loads(first.out)['seed']}" in first.err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["sample", "--steps", "-1"], 2, "--steps"),
        (["sample", "--temperature", "nan"], 2, "--temperature"),
        (["sample", "--n", "65"], 2, "--n"),
        (["sample", "--step", "3"], 2, "--steps"),
        (["sample", "--format", "sse"], 2, "npy"),
        (["sample", "--model", "nobody"], 1, "it has mnist"),
        (["sample", "--version", "7"], 1, "no version 7"),
        (["dream", "missing.png"], 1, "missing.png"),
        (["features", "text.png"], 1, "text.png"),
        (["models", "nobody"], 1, "it has mnist"),
        (["plot", "nonsense"], 2, "filters"),
        (["serve", "--port", "99999"], 2, "--port"),
        (["dance"], 2, "dance"),
    ],
)
def test_failures_say_what_and_why(rbm: Rbm, tmp_path: Path, words: list[str], status: int, told: str) -> None:
    (tmp_path / "text.png").write_text("not an image")
    done = rbm(*words)
    assert (done.status, done.out) == (status, b"")
    assert told in done.err and "Traceback" not in done.err


def test_a_model_can_be_named_by_its_path(rbm: Rbm, store: Path) -> None:
    words = ("sample", "--seed", 1, "--steps", 3)
    assert rbm(*words).out == rbm(*words, "--model", store / "mnist" / "000001").out != b""


def test_models_lists_good_and_bad_versions(rbm: Rbm, params: RBMParams, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    for _ in range(2):
        path = publish(folder, "mine", params, image_shape=SHAPE, manifest={})
    (path / "model.safetensors").write_bytes(b"damaged")
    found = json.loads(rbm("models", "--json", "--checkpoints", folder).out)["models"]
    assert [row["version"] for row in found] == [1, 2]
    assert found[0]["num_hidden"] == 16 and "problem" not in found[0]
    assert "model.safetensors" in found[1]["problem"]
    table = rbm("models", "--checkpoints", folder)
    assert b"64x16" in table.out and b"000002" in table.out and "1" in table.err
    assert "rbm train" in rbm("models", "--checkpoints", tmp_path / "nothing").err


def test_a_defect_keeps_its_traceback_and_an_interruption_its_status(rbm: Rbm, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(error: BaseException) -> Callable[..., None]:
        def fail(*args: object) -> None:
            raise error

        return fail

    monkeypatch.setattr(cli_models, "_rows", raise_error(KeyboardInterrupt()))
    assert rbm("models").status == 130
    monkeypatch.setattr(cli_models, "_rows", raise_error(ZeroDivisionError()))
    monkeypatch.setattr(sys, "argv", ["rbm", "models"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
    assert expected_failure(CliError("do this")) == "do this"
    assert expected_failure(FileNotFoundError(2, "No such file", "x.png")) == "x.png: No such file."
    assert expected_failure(KeyError()) is None


def test_a_reader_that_leaves_is_no_failure_to_tell(store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from model_core.cli import main; main()", "models", "--checkpoints", str(store)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(writer)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"rbm:" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['rbm', '--help']\nfrom model_core.cli import main\n"
        "try: main()\nexcept SystemExit as ended: assert not ended.code\n"
        "heavy = {'tensorflow', 'numba', 'matplotlib', 'sklearn', 'scipy', 'fastapi', 'pydantic', 'PIL', 'uvicorn'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert done.stderr.decode().strip() == "[]"
    shown = done.stdout.decode()
    for command in ("train", "evaluate", "serve", "sample", "dream", "features", "models", "bench", "plot"):
        assert f" {command} " in shown


def test_serve_hands_its_flags_to_the_server(rbm: Rbm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import service.server
    from service.settings import Settings

    given: list[Settings] = []

    def fake_serve(settings: Settings) -> int:
        given.append(settings)
        return 7

    monkeypatch.setattr(service.server, "serve", fake_serve)
    monkeypatch.setenv("RBM_PORT", "9000")
    assert rbm("serve", "--host", "127.0.0.2", "--checkpoints", tmp_path).status == 7
    (settings,) = given
    assert (settings.host, settings.port, settings.checkpoints) == ("127.0.0.2", 9000, tmp_path)
    assert rbm("serve", "--port", 0).status == 7 and given[1].port == 0  # a flag wins over its variable


def test_plot_draws_all_it_can_and_says_what_it_leaves_out(rbm: Rbm, tmp_path: Path) -> None:
    done = rbm("plot", "--json", "--steps", 3)
    assert done.status == 0, done.err
    files = json.loads(done.out)["files"]
    kinds = [Path(name).stem for name in files]
    assert kinds == [f"mnist-{kind}" for kind in ("images", "histograms", "filters", "dreams", "curves", "report")]
    assert all(Image.open(io.BytesIO((tmp_path / name).read_bytes())).format == "PNG" for name in files)
    assert "left out convergence" in done.err
    assert "checkpoints of a training" in rbm("plot", "convergence").err


def test_plot_follows_the_weights_of_a_training(rbm: Rbm, store: Path, params: RBMParams) -> None:
    from model_core.presets import TrainConfig
    from model_core.training import Trainer
    from model_core.training_checkpoints import saved_params, saved_updates

    publish(store, "trained", params, image_shape=SHAPE, manifest={})
    images = np.random.default_rng(0).random((40, 64)).astype(np.float32)
    trainer = Trainer(TrainConfig(num_hidden=4, batch_size=20), images, directory=store / "trained" / "training")
    for _ in range(3):
        trainer.save()
        trainer.make_update()
    last = trainer.params
    trainer.save()
    found = saved_updates(store / "trained" / "training")
    assert list(found) == [0, 1, 2, 3]
    for restored, expected in zip(saved_params(found[3]), last, strict=True):
        np.testing.assert_array_equal(restored, expected)
    assert rbm("plot", "convergence", "--model", "trained").status == 0
    with pytest.raises(ValueError, match="not a training checkpoint"):
        saved_params(str(store / "nothing-1"))


def test_flags_are_those_of_the_routes() -> None:
    """Every parameter of a route that makes sense without a server has a flag."""
    import inspect

    from service import schemas

    for command, schema in (
        (cli_chains.sample, schemas.SampleParams),
        (cli_chains.dream, schemas.DreamParams),
        (cli_chains.features, schemas.FeaturesParams),
    ):
        flags = {"format" if name == "format_name" else name for name in inspect.signature(command).parameters}
        assert set(schema.model_fields) - flags <= {"timeout", "method"}
