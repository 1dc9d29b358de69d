"""CI's own script, and its plugin that takes a skipped test for a failed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_script_is_a_program_that_bash_can_read() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text("utf-8")
    assert "-p tests.no_skips" in text and "pip install --quiet '.[test]'" in text
    assert "://" not in text and "index" not in text


BAD, GOOD = "real MNIST is not at hand", "needs a GPU: none here"
FILES = {
    "test_in_body.py": "def test_bad(): pytest.skip({bad!r})\ndef test_good(): pytest.skip({good!r})",
    "test_in_fixture.py": "@pytest.fixture\ndef data(): pytest.skip({bad!r})\ndef test_bad(data): pass",
    "test_by_mark.py": "@pytest.mark.skip(reason={bad!r})\ndef test_bad(): pass",
    "test_bad_module.py": "pytest.skip({bad!r}, allow_module_level=True)",
    "test_good_module.py": "pytest.skip({good!r}, allow_module_level=True)",
    "test_others.py": "def test_passes(): pass\n@pytest.mark.xfail\ndef test_xfails(): assert False",
}


def test_a_skipped_test_fails_in_ci(tmp_path: Path) -> None:
    for name, body in FILES.items():
        (tmp_path / name).write_text("import pytest\n" + body.format(bad=BAD, good=GOOD) + "\n")
    (tmp_path / "pytest.ini").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "tests.no_skips", "--continue-on-collection-errors"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    told = [line.split(" - ")[0] for line in done.stdout.splitlines()]
    assert "FAILED test_in_body.py::test_bad" in told
    for name in ("test_in_fixture.py::test_bad", "test_by_mark.py::test_bad", "test_bad_module.py"):
        assert f"ERROR {name}" in told  # not in the body of a test
    assert "1 failed, 1 passed, 2 skipped, 1 xfailed, 3 errors" in done.stdout
