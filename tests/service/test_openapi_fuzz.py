"""A real server against its own OpenAPI: schemathesis sends what it allows and what it forbids, with all its checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema_rs import Draft202012Validator

from tests.service.http_helpers import ServerProcess, image_bytes, running_app, serving, settings_for

# Bytes that are no image fit the schema all the same: uploads may be refused, requests without a body may not.
CONFIG = """
[[operations]]
include-method = "POST"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "413", "415", "422", "429", "503"]
"""
RUN = "from schemathesis.cli import schemathesis; schemathesis()"


@pytest.fixture
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store) as server:
        yield server


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: ServerProcess, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    options = ["--checks", "all", "-n", "10", "--seed", "1", "--continue-on-failure", "--no-color"]
    ended = subprocess.run(
        [sys.executable, "-c", RUN, "--config-file", str(config), "run", url, *options],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.service.fuzz_hooks"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-30000:] + ended.stderr[-2000:]
    assert "Selected: 13/13" in ended.stdout  # it found the routes
    assert " 500 " not in server.log.read_text()


def test_the_schema_tells_every_range(store: Path) -> None:
    with running_app(settings_for(store)) as client:
        document = client.get("/openapi.json").json()
    parameters = {item["name"]: item["schema"] for item in document["paths"]["/sample"]["get"]["parameters"]}
    ranges = {
        "steps": (0, 10_000), "n": (1, 64), "seed": (0, 2**63 - 1), "temperature": (0.05, 20), "every": (0, 10_000),
        "scale": (1, 32), "version": (1, 999_999), "timeout": (0.1, 600),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        assert (parameters[name]["minimum"], parameters[name]["maximum"]) == (low, high), name
    assert parameters["steps"]["default"] == 500
    assert parameters["format"]["enum"] == ["png", "gif", "webp", "apng", "json", "npy", "csv", "sse"]
    assert "null" not in json.dumps(parameters)


def test_every_operation_tells_its_errors(store: Path) -> None:
    with running_app(settings_for(store)) as client:
        document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            problems = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            assert {"404", "405", "500"} <= set(problems), path
            assert all("application/problem+json" in answer["content"] for answer in problems.values()), path


def test_every_documented_format_is_made(store: Path) -> None:
    with running_app(settings_for(store)) as client:
        document = client.get("/openapi.json").json()
        for media_type in document["paths"]["/sample"]["get"]["responses"]["200"]["content"]:
            answer = client.get("/sample?steps=1", headers={"Accept": media_type})
            assert answer.headers["content-type"].partition(";")[0] == media_type


def test_json_answers_hold_what_the_schema_says_and_nothing_else(store: Path) -> None:
    upload = {"file": ("digit.png", image_bytes("PNG"), "image/png")}
    asked = [
        ("GET", "/sample", "n=2&seed=1"), ("GET", "/sample", "steps=4&every=2&pixels=true&output=samples"),
        ("POST", "/dream", ""), ("POST", "/dream", "pixels=true&every=5"), ("POST", "/energy", ""),
        ("POST", "/features", ""), ("POST", "/features", "kind=samples"), ("GET", "/filters", "n=3"),
    ]  # fmt: skip
    with running_app(settings_for(store)) as client:
        document = client.get("/openapi.json").json()
        for method, path, query in asked:
            files = upload if method == "POST" else None
            answer = client.request(method, f"{path}?format=json&{query}", files=files)
            assert answer.status_code == 200, answer.text
            content = document["paths"][path][method.lower()]["responses"]["200"]["content"]
            schema = content["application/json"]["schema"]
            validator = Draft202012Validator(schema)
            validator.validate(answer.json())
            assert not validator.is_valid(answer.json() | {"another": 1})
            for field in schema["required"]:
                assert not validator.is_valid({name: value for name, value in answer.json().items() if name != field})
