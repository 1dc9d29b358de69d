"""Stopping and going on: the same bits as an uninterrupted training, whatever happened to the process or its files."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_core.presets import TrainConfig
from model_core.training import Trainer, TrainingError
from model_core.training_checkpoints import saved_updates

CONFIG = TrainConfig(
    num_hidden=5, epochs=4, batch_size=20, num_chains=30, chain_steps=2, warmup_updates=3, average_share=0.4,
    learning_rate_weights=0.3, learning_rate_biases=0.3, rate_changes=((2, 0.5),), seed=7,
)  # fmt: skip
IMAGES = (np.random.default_rng(0).random((100, 9)) * np.linspace(0, 1, 9)).astype(np.float32)
SAMPLERS = ("cd", "pcd", "ladder")
RULES = ("sgd", "momentum", "adam")


def everything(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """All that a checkpoint of this moment holds."""
    trainer.save()
    path = saved_updates(folder)[trainer.update]
    reader = tf.train.load_checkpoint(path)
    names = [name for name, _ in tf.train.list_variables(path) if "save_counter" not in name and "OBJECT" not in name]
    return {name: reader.get_tensor(name) for name in names}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.asarray(value).tobytes() == np.asarray(right[name]).tobytes(), name


def advance(trainer: Trainer, num_updates: int | None = None) -> Trainer:
    for _ in trainer.train(num_updates):
        pass
    return trainer


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resume_equals_uninterrupted(sampler: Any, rule: Any, tmp_path: Path) -> None:
    """Parameters, slots, chains, averages, ladder, counters: after stops in the middle of epochs and at their ends."""
    config = CONFIG.replace(sampler=sampler, rule_weights=rule, rule_biases=rule)
    alone = advance(Trainer(config, IMAGES, tmp_path / "alone"))
    for stop in (7, 3, None):
        trainer = Trainer(config, IMAGES, tmp_path / "stopped")
        if trainer.manager is not None and trainer.manager.checkpoints:
            trainer.restore()
        advance(trainer, stop).save()
    assert alone.update == trainer.update == 20
    assert_same(everything(alone, tmp_path / "alone"), everything(trainer, tmp_path / "stopped"))


def test_a_ladder_that_grew_resumes_too(tmp_path: Path) -> None:
    images = np.repeat(np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0, 1]], np.float32), 50, axis=0)
    config = CONFIG.replace(sampler="ladder", schedule="constant", rate_changes=(), epochs=60)
    alone = advance(Trainer(config, images, tmp_path / "alone"))
    assert alone.ladder is not None and len(alone.ladder.ladder.rungs) > 1
    for stop in (137, 100, None):  # before and after freezes
        resumed = Trainer(config, images, tmp_path / "stopped")
        if resumed.manager is not None and resumed.manager.checkpoints:
            resumed.restore()
        advance(resumed, stop).save()
    assert_same(everything(alone, tmp_path / "alone"), everything(resumed, tmp_path / "stopped"))


def three_checkpoints(folder: Path, sampler: Any = "pcd") -> TrainConfig:
    config = CONFIG.replace(sampler=sampler)
    trainer = Trainer(config, IMAGES, folder)
    for _ in range(3):
        advance(trainer, 5).save()
    return config


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "missing", "index gone"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = three_checkpoints(tmp_path)
    newest = tmp_path / ("ckpt-15.index" if damage == "index gone" else "ckpt-15.data-00000-of-00001")
    content = newest.read_bytes()
    if damage in ("missing", "index gone"):
        newest.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        newest.write_bytes({"truncated": content[:middle], "emptied": b"", "flipped": flipped}[damage])
    trainer = Trainer(config, IMAGES, tmp_path)
    with caplog.at_level(logging.WARNING):
        trainer.restore()
    assert trainer.update == 10
    assert "ckpt-15" in caplog.text
    advance(trainer)
    assert_same(
        everything(trainer, tmp_path), everything(advance(Trainer(config, IMAGES, tmp_path / "b")), tmp_path / "b")
    )


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff garbage {{{"])
def test_a_lost_list_of_checkpoints_is_made_anew_from_the_files(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happens to the file `checkpoint`, a resumed training never starts from zero."""
    config = three_checkpoints(tmp_path)
    if content is None:
        (tmp_path / "checkpoint").unlink()
    else:
        (tmp_path / "checkpoint").write_bytes(content)
    trainer = Trainer(config, IMAGES, tmp_path)
    trainer.restore()
    assert trainer.update == 15
    assert list(saved_updates(tmp_path)) == [5, 10, 15]


def test_nothing_to_restore_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No training checkpoint is listed"):
        Trainer(CONFIG, IMAGES, tmp_path).restore()
    with pytest.raises(TrainingError, match="directory"):
        Trainer(CONFIG, IMAGES).restore()
    with pytest.raises(TrainingError, match="directory"):
        Trainer(CONFIG, IMAGES).save()


@pytest.mark.parametrize("changes", [{"num_hidden": 6}, {"num_chains": 31}, {"rule_weights": "adam"}], ids=str)
def test_a_checkpoint_of_another_configuration_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    three_checkpoints(tmp_path)
    with pytest.raises(TrainingError, match="No training checkpoint can be restored"):
        Trainer(CONFIG.replace(**changes), IMAGES, tmp_path).restore()


@pytest.mark.parametrize("sampler", ["pcd", "ladder"])
def test_any_listed_checkpoint_can_be_restored(sampler: Any, tmp_path: Path) -> None:
    config = three_checkpoints(tmp_path, sampler)
    expected = advance(Trainer(config, IMAGES), 10).params
    trainer = Trainer(config, IMAGES, tmp_path)
    trainer.restore(saved_updates(tmp_path)[10])
    assert trainer.update == 10
    np.testing.assert_array_equal(trainer.params.weights, expected.weights)


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    config = three_checkpoints(tmp_path / "here", "ladder")
    shutil.move(tmp_path / "here", tmp_path / "there")
    trainer = Trainer(config, IMAGES, tmp_path / "there")
    trainer.restore()
    assert trainer.update == 15
