"""`rbm train`: publishes whole models of any images, refuses what cannot go together, and survives being killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from model_core import cli, cli_train_publish
from model_core.cli_support import CliError
from model_core.cli_train import default_name
from model_core.cli_train_folder import TrainingFolder
from model_core.equilibrium import LADDER_FILE, parse_ladder
from model_core.model_store import load_extra, load_model
from model_core.training_checkpoints import saved_params, saved_updates

# Small and quick: 1,437 images of 8x8, 28 updates an epoch.
SMALL = ["--data", "digits", "--hidden", "8", "--epochs", "3", "--batch-size", "50", "--chains", "20", "--steps", "1"]
KILLS = 3


class Done(NamedTuple):
    status: int
    out: str
    err: str


Rbm = Callable[..., Done]


@pytest.fixture
def rbm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Rbm:
    """Runs a command line in an empty folder, with little work for the likelihood."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_train_publish, "_NUM_BETAS", 50)

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rbm", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


def train(rbm: Rbm, *words: object) -> Done:
    return rbm("train", *SMALL, "--no-evaluate", *words)


def same_params(left: Path, right: Path) -> bool:
    return all(np.array_equal(*pair) for pair in zip(load_model(left).params, load_model(right).params, strict=True))


def test_a_published_model_tells_all_about_itself(rbm: Rbm, tmp_path: Path) -> None:
    done = rbm("train", *SMALL, "--seed", 3, "--json", "--tensorboard", "board")
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    model = load_model(tmp_path / answer["path"])
    card = model.manifest
    assert (model.name, model.version, model.image_shape) == ("digits", 1, (8, 8))
    assert card["training"]["config"]["num_hidden"] == 8 and card["training"]["seed"] == 3
    assert card["training"]["updates"] == 84 and card["training"]["seconds"] > 0
    assert [row["epoch"] for row in card["training"]["history"]] == [1, 2, 3]
    assert card["dataset"]["name"] == "digits" and len(card["dataset"]["sha256"]) == 64
    assert card["dataset"]["split"] == {"train": 1438, "validation": 0, "test": 359}
    assert card["metrics"]["free_energy_gap_against"] == "test"
    assert card["metrics"]["log_z"]["exact"] is not None  # 8 hidden units
    assert card["metrics"]["log_likelihood"]["test"] == pytest.approx(answer["metrics"]["log_likelihood"]["test"])
    assert len(card["free_energy_percentiles"]) == 101
    assert parse_ladder(load_extra(model, LADDER_FILE), 64, 8).rungs == ()
    assert load_extra(model, cli_train_publish.REPORT_FILE).startswith(b"\x89PNG")
    assert list((tmp_path / "board").glob("events*"))


def test_resume_after_an_interruption_gives_the_same_bits(
    rbm: Rbm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_core.training import Trainer

    assert train(rbm, "--checkpoints", "alone").status == 0
    real = Trainer.make_update

    def interrupted(trainer: Trainer) -> None:
        real(trainer)
        if trainer.update == 40:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "make_update", interrupted)
    stopped = train(rbm)
    assert stopped.status == 130 and not stopped.out
    command = stopped.err.strip().splitlines()[-1].split()
    assert command == ["rbm", "train", "--name", "digits", "--checkpoints", "checkpoints", "--resume"]
    monkeypatch.setattr(Trainer, "make_update", real)
    assert rbm(*command[1:], "--no-evaluate").status == 0
    assert same_params(tmp_path / "alone" / "digits", tmp_path / "checkpoints" / "digits")
    history = load_model(tmp_path / "checkpoints" / "digits").manifest["training"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]


def test_a_second_training_never_harms_the_first(rbm: Rbm, tmp_path: Path) -> None:
    assert train(rbm).status == 0
    again = train(rbm)
    assert again.status == 1 and "--resume" in again.err and "--fresh" in again.err
    with TrainingFolder(tmp_path / "checkpoints" / "digits" / "training").locked():
        beside = train(rbm, "--fresh")
    assert beside.status == 1 and "Another `rbm train`" in beside.err
    assert train(rbm, "--fresh", "--seed", 1).status == 0
    assert load_model(tmp_path / "checkpoints" / "digits").version == 2
    assert not same_params(*(tmp_path / "checkpoints" / "digits" / version for version in ("000001", "000002")))


def test_resume_refuses_another_configuration_and_other_images(rbm: Rbm, tmp_path: Path) -> None:
    assert rbm("train", "--data", "digits", "--resume").status == 1
    assert train(rbm).status == 0
    other = rbm("train", "--data", "digits", "--epochs", 5, "--resume")
    assert other.status == 1 and "epochs 3, not 5" in other.err
    preset = rbm("train", "--data", "digits", "--preset", "quick", "--resume")
    assert preset.status == 1 and "num_hidden 8, not 256" in preset.err
    np.save(tmp_path / "own.npy", np.random.default_rng(0).random((40, 8, 8)))
    images = rbm("train", "--name", "digits", "--data", tmp_path / "own.npy", "--resume")
    assert images.status == 1 and "other images" in images.err
    assert rbm("train", "--data", "digits", "--resume", "--fresh").status == 2


def test_any_listed_checkpoint_can_be_published(rbm: Rbm, tmp_path: Path) -> None:
    assert train(rbm).status == 0
    listed = rbm("train", "--data", "digits", "--list-checkpoints", "--json")
    updates = [row["updates"] for row in json.loads(listed.out)]
    assert updates == [28, 56, 84]
    done = rbm("train", "--data", "digits", "--checkpoint", 56, "--no-evaluate")
    assert done.status == 0, done.err
    model = load_model(tmp_path / "checkpoints" / "digits")
    assert model.version == 2 and model.manifest["training"]["updates"] == 56
    expected = saved_params(saved_updates(tmp_path / "checkpoints" / "digits" / "training")[56])
    np.testing.assert_array_equal(model.params.weights, expected.weights)
    missing = rbm("train", "--data", "digits", "--checkpoint", 57)
    assert missing.status == 1 and "28, 56, 84" in missing.err
    assert rbm("train", "--name", "nothing", "--list-checkpoints").status == 1


def test_a_training_without_its_plan_is_taken_at_the_flags_word(rbm: Rbm, tmp_path: Path) -> None:
    """Checkpoints of a `Trainer` that a script ran; what nobody wrote down is measured again."""
    assert train(rbm).status == 0
    folder = tmp_path / "checkpoints" / "digits" / "training"
    (folder / "config.json").unlink()
    (folder / "history.jsonl").unlink()
    done = train(rbm, "--resume")
    assert done.status == 0 and "no config.json" in done.err
    history = load_model(tmp_path / "checkpoints" / "digits").manifest["training"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    (folder / "config.json").write_text("{")
    damaged = train(rbm, "--resume")
    assert damaged.status == 1 and "config.json cannot be read" in damaged.err


def test_a_persons_own_pictures_of_any_size(rbm: Rbm, tmp_path: Path) -> None:
    folder = tmp_path / "My Pictures"
    folder.mkdir()
    for number in range(30):
        pixels = np.zeros((6, 9), np.uint8)
        pixels[number % 6] = 250 - number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    done = rbm("train", "--data", folder, "--epochs", 2, "--hidden", 5, "--validation", 5)
    assert done.status == 0, done.err
    assert "training images: 2 epochs, batches of 10" in done.err
    model = load_model(tmp_path / "checkpoints" / "my-pictures")
    assert model.image_shape == (6, 9) and model.params.weights.shape == (54, 5)
    assert model.manifest["metrics"]["free_energy_gap_against"] == "validation"
    assert str(tmp_path) not in json.dumps(model.manifest)


@pytest.mark.parametrize("sampler", ["cd", "ladder"])
def test_other_samplers_and_settings(rbm: Rbm, tmp_path: Path, sampler: str) -> None:
    done = train(rbm, "--sampler", sampler, "--rule", "adam", "--rate", 0.01, "--set", "rate_changes=1:0.5,2:0.5")
    assert done.status == 0, done.err
    card = load_model(tmp_path / "checkpoints" / "digits").manifest["training"]
    assert card["rate_scale"] == [0.25, 0.25] and card["config"]["rate_changes"] == [[1, 0.5], [2, 0.5]]
    assert ("log Z" in card["history"][-1]) == (sampler == "ladder")
    model = load_model(tmp_path / "checkpoints" / "digits")
    if sampler == "ladder":
        assert len(parse_ladder(load_extra(model, LADDER_FILE), 64, 8).rungs) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "best"], "there is no preset"),
        (["--set", "sparsity=1"], "--set takes FIELD=VALUE"),
        (["--set", "centred=maybe"], "not a value like"),
        (["--set", "updates_an_epoch=0"], "must be at least 1"),
        (["--hidden", "0"], "`num_hidden` must be at least 1"),
        (["--sampler", "tempered"], "sampler"),
    ],
)
def test_wrong_usage_is_named(rbm: Rbm, words: list[str], message: str) -> None:
    done = rbm("train", *words)
    assert done.status == 2 and message in done.err


def test_a_training_that_cannot_begin_leaves_nothing_behind(rbm: Rbm, tmp_path: Path) -> None:
    assert rbm("train", "--data", "nowhere.npz").status == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert rbm("train", "--data", "nowhere.npz", "--checkpoints", "mine").status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_folder_of_models_may_come_from_the_environment(
    rbm: Rbm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBM_CHECKPOINTS", "elsewhere")
    assert train(rbm, "--epochs", "1").status == 0
    assert load_model(tmp_path / "elsewhere" / "digits").version == 1 and not (tmp_path / "checkpoints").exists()


def test_names_of_models_come_from_the_data() -> None:
    assert default_name("mnist") == "mnist"
    assert default_name("/some/where/My Digits_2.npz") == "my-digits-2"
    with pytest.raises(CliError, match="--name"):
        default_name("/some/where/数字.npz")


def test_a_torn_history_keeps_its_whole_rows(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path)
    folder.append_history({"update": 1, "gap": 0.5, "ratio": float("inf")})
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"update": 2, "ga')
    assert folder.history() == [{"update": 1, "gap": 0.5}]


# Killed


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        "from model_core.cli import main; main()",
        "train",
        *SMALL,
        "--no-evaluate",
        *words,
    ]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until_it_trains(process: subprocess.Popen[bytes], folder: Path, num_rows: int) -> None:
    history = folder / "checkpoints" / "digits" / "training" / "history.jsonl"
    while process.poll() is None and (not history.exists() or history.read_bytes().count(b"\n") < num_rows):
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_moments_the_bits_are_those_of_a_run_left_alone(rbm: Rbm, tmp_path: Path) -> None:
    words = ("--epochs", "22", "--set", "keep_checkpoints=3")
    killed, rng = tmp_path / "killed", random.Random(0)
    killed.mkdir()
    for kill in range(KILLS):
        process = start(killed, *words, *(["--resume"] if kill else []))
        until_it_trains(process, killed, 5 * kill + 1)
        time.sleep(rng.random() * 0.3)
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, errors.decode()
    last = start(killed, *words, "--resume")
    assert last.wait() == 0, last.communicate()[1].decode()
    last.communicate()
    assert train(rbm, *words).status == 0
    assert same_params(killed / "checkpoints" / "digits", tmp_path / "checkpoints" / "digits")


@pytest.mark.slow
def test_sigterm_saves_and_prints_the_resume_command(tmp_path: Path) -> None:
    process = start(tmp_path, "--epochs", "100000", "--set", "keep_checkpoints=2")
    until_it_trains(process, tmp_path, 2)
    process.terminate()
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and errors.strip().endswith("--resume")
