"""The README keeps its word: its commands, routes, files and pictures exist."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service.app import create_app
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_stand_at_the_top() -> None:
    first = BLOCKS[0][1]
    assert "pip install . && rbm serve" in first
    assert "pip install '.[test]' && pytest" in first


def test_every_route_is_told_and_none_is_made_up() -> None:
    told = {path.split("?")[0] for path in re.findall(r"`(?:GET|POST) (/[^`]*)`", README)}
    paths = set(create_app().openapi()["paths"])
    assert told - {"/", "/docs"} <= paths
    assert {"/dream", "/sample", "/features", "/energy", "/inpaint", "/filters", "/models", "/readyz"} <= told & paths


def test_files_and_pictures_exist() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
    for cell in re.findall(r"^\| `(model_core|service)/([^|]*)` \|", README, flags=re.MULTILINE):
        package, names = cell
        for name in re.findall(r"[\w*]+\.py", names):
            assert list((ROOT / package).glob(name)), f"{package}/{name}"


def test_every_command_of_the_shell_examples_is_a_command() -> None:
    from model_core.cli import app

    commands = set(re.findall(r"^rbm (\w+)", "\n".join(text for kind, text in BLOCKS if kind == "bash"), re.MULTILINE))
    assert {"train", "evaluate", "bench"} <= commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = (text for kind, text in BLOCKS if kind == "python")
    names: dict[str, Any] = {}
    exec(example, names)
    assert np.shape(names["visible"]) == (16, 784)
