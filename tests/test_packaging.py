"""What is shipped: the lock, the image's recipe, the wheel, and its install and start steps in a clean folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import model_core

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
START_SECONDS = 120.0


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Dockerfile text -> [(instruction, arguments)], continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each beginning with FROM."""
    found: list[list[tuple[str, str]]] = []
    for name, arguments in instructions((ROOT / "Dockerfile").read_text("utf-8")):
        if name == "FROM":
            found.append([])
        found[-1].append((name, arguments))
    return found


def arguments_of(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for instruction, arguments in stage if instruction == name]


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    pairs = (pair.partition("=") for line in arguments_of(stage, "ENV") for pair in line.split())
    return {name: value for name, _, value in pairs}


def exec_form(arguments: str) -> list[str]:
    """The list behind CMD; a shell form is not JSON, and would hide signals from the server."""
    command = json.loads(arguments[arguments.index("[") :])
    assert all(isinstance(word, str) for word in command)
    return command


def test_the_image_is_built_in_two_slim_stages(stages: list[list[tuple[str, str]]]) -> None:
    assert len(stages) == 2
    for stage in stages:
        image = stage[0][1].split()[0]
        assert re.fullmatch(r"python:3\.1[123]-slim", image)
        assert not arguments_of(stage, "ADD")
    build, final = stages
    runs = arguments_of(build, "RUN")
    assert any("--require-hashes -r /src/requirements.lock" in run for run in runs)
    assert any("--no-deps /src" in run for run in runs)
    assert not arguments_of(final, "RUN"), "the final stage only takes what the first one made"


def test_the_image_runs_as_nobody_and_stops_cleanly(stages: list[list[tuple[str, str]]]) -> None:
    final = stages[-1]
    user = arguments_of(final, "USER")
    assert len(user) == 1 and all(int(number) > 0 for number in user[0].split(":"))
    assert arguments_of(final, "STOPSIGNAL") == ["SIGTERM"]
    assert exec_form(arguments_of(final, "CMD")[-1]) == ["rbm", "serve"]
    health = exec_form(arguments_of(final, "HEALTHCHECK")[-1])
    assert health[:2] == ["python", "-c"] and "/healthz" in health[2]


def test_the_image_does_not_open_the_door_without_a_key(stages: list[list[tuple[str, str]]]) -> None:
    settings = environment(stages[-1])
    assert settings["RBM_HOST"] == "0.0.0.0"
    assert not {"RBM_INSECURE", "RBM_API_KEYS"} & settings.keys()


def test_what_the_image_copies_is_there_and_not_ignored(stages: list[list[tuple[str, str]]]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    for copy in arguments_of(stages[0], "COPY"):
        for source in copy.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept


def locked() -> dict[str, list[Requirement]]:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    found: dict[str, list[Requirement]] = {}
    for entry in re.sub(r"\\\n\s*", "", text).splitlines():
        if entry and not entry.lstrip().startswith("#"):
            requirement, *hashes = entry.split(" --hash=")
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", text.strip()) for text in hashes), entry
            parsed = Requirement(requirement)
            found.setdefault(canonicalize_name(parsed.name), []).append(parsed)
    return found


def test_the_lock_pins_every_dependency_above_its_floor() -> None:
    pins = locked()
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        for pin in pins[canonicalize_name(wanted.name)]:
            version = re.fullmatch(r"==([^*]+)", str(pin.specifier))
            assert version and wanted.specifier.contains(version[1]), f"{pin} does not satisfy {wanted}"


def test_the_lock_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    for word in ("://", "index-url", "find-links", "trusted-host", " @ "):
        assert word not in text


def test_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[(\d\S*)\]", changelog, re.M)[0] == model_core.__version__
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the project, in which a training and a publication are under way."""
    source, target = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    for name in ("model_core", "service", "tests", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "training", ".*"))
    for private in ("training/ckpt-1.index", ".publishing-000009/model.json"):
        path = source / "checkpoints" / "mnist" / private
        path.parent.mkdir(parents=True)
        path.touch()
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(target), str(source)], check=True)
    (path,) = target.glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_the_page_and_the_published_models(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("model_core", "service"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "checkpoints").glob("*/[0-9]*/*"):
        assert f"model_core/{path.relative_to(ROOT).as_posix()}" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"model_core", "service", f"{wheel.name[:-17]}.dist-info"}
    unwanted = re.compile(r"(^|/)(training|tests|__pycache__)/|/\.|\.pyc$")
    assert not [name for name in names if unwanted.search(name)]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with the wheel in it, as the image's first stage makes it; its dependencies are those of this environment.

    (They are lent by a .pth file in place of the `pip install -r requirements.lock`, which needs a network.)
    """
    venv = tmp_path_factory.mktemp("app") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    subprocess.run([str(venv / "bin" / "pip"), "install", *options, str(wheel)], check=True)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


@pytest.fixture(scope="module")
def image_environment(
    installed: Path, stages: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The variables of the image's last stage, with its paths and address turned into ones that exist here."""
    home = tmp_path_factory.mktemp("home")
    declared = {name: value.replace("/tmp", str(home)) for name, value in environment(stages[-1]).items()}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{installed / 'bin'}:{os.environ['PATH']}"
    return {**declared, "PATH": path, "RBM_HOST": "127.0.0.1", "RBM_PORT": str(port)}


@pytest.fixture(scope="module")
def server(image_environment: dict[str, str], stages: list[list[tuple[str, str]]]) -> Iterator[subprocess.Popen[bytes]]:
    """The image's CMD, started in an empty folder and ready."""
    command = exec_form(arguments_of(stages[-1], "CMD")[-1])
    folder = Path(image_environment["HOME"]) / "empty"
    folder.mkdir()
    program = shutil.which(command[0], path=image_environment["PATH"])
    assert program is not None
    with subprocess.Popen([program, *command[1:]], cwd=folder, env=image_environment) as process:
        try:
            wait_until_ready(process, f"http://127.0.0.1:{image_environment['RBM_PORT']}/readyz")
            yield process
        finally:
            process.kill()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            told = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s: {told}"
            time.sleep(0.2)


@pytest.mark.slow
def test_the_installed_command_comes_from_the_wheel(installed: Path, image_environment: dict[str, str]) -> None:
    folder = image_environment["HOME"]
    for words in (["--help"], ["models"]):
        command = [str(installed / "bin" / "rbm"), *words]
        assert subprocess.run(command, cwd=folder, env=image_environment, capture_output=True, check=True).stdout
    code = "import model_core; print(model_core.__file__)"
    python = [str(installed / "bin" / "python"), "-c", code]
    done = subprocess.run(python, cwd=folder, env=image_environment, capture_output=True, check=True)
    assert Path(done.stdout.decode().strip()).is_relative_to(installed)


@pytest.mark.slow
def test_the_image_refuses_a_public_address_without_a_key(image_environment: dict[str, str]) -> None:
    """It ends before it listens: nothing is bound on a public address here."""
    rbm = shutil.which("rbm", path=image_environment["PATH"])
    assert rbm is not None
    public = {**image_environment, "RBM_HOST": "0.0.0.0"}
    done = subprocess.run([rbm, "serve"], env=public, cwd=public["HOME"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"RBM_API_KEYS" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.slow
def test_the_image_serves_the_shipped_model_until_sigterm(
    server: subprocess.Popen[bytes], image_environment: dict[str, str], stages: list[list[tuple[str, str]]]
) -> None:
    address = f"http://127.0.0.1:{image_environment['RBM_PORT']}"
    health = exec_form(arguments_of(stages[-1], "HEALTHCHECK")[-1])
    program = shutil.which(health[0], path=image_environment["PATH"])
    assert program is not None
    subprocess.run([program, *health[1:]], env=image_environment, check=True, timeout=30)
    with urllib.request.urlopen(f"{address}/models", timeout=30) as answer:
        assert "mnist" in answer.read().decode()
    with urllib.request.urlopen(f"{address}/sample?steps=5&seed=1", timeout=60) as answer:
        assert answer.read().startswith(b"\x89PNG")
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) == 0
