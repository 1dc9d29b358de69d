"""What `rbm` calls things when they fail: by the names that the user gave them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model_core import cli


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rbm", *(str(word) for word in words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_variable_of_the_environment_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RBM_LOG_FORMAT", "xml")
    assert run(monkeypatch, "serve", "--port", "-1") == 2
    told = capsys.readouterr().err
    assert "RBM_LOG_FORMAT: " in told and "--port: " in told


def test_a_file_that_cannot_be_written_is_told_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "sample", "--steps", "0", "-o", tmp_path / "nowhere" / "x.png") == 1
    assert f"{tmp_path}/nowhere/x.png: No such file" in capsys.readouterr().err
