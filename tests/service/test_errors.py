"""Bad input gets a clear problem document, never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.service.http_helpers import image_bytes, is_problem, npy_bytes, publish_tiny, running_app, settings_for

PNG = {"Content-Type": "image/png"}
NPY = {"Content-Type": "application/x-npy"}
JSON = {"Content-Type": "application/json"}
ROW = [0] * 784


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    checkpoints = tmp_path_factory.mktemp("store") / "checkpoints"
    publish_tiny(checkpoints)
    with running_app(settings_for(checkpoints, max_array_bytes=300_000)) as client:
        yield client


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("step=500", ["`step`", "did you mean `steps`?"]),
        ("temprature=2", ["did you mean `temperature`?"]),
        ("zzzz=1", ["zzzz", "steps"]),
        ("steps=-1", ["`steps`", "greater than or equal to 0"]),
        ("steps=10001", ["10000"]),
        ("steps=1e3", ["`steps`"]),
        ("steps=1_0", ["plain number"]),
        ("steps=%D9%A3", ["plain number"]),
        ("steps=", ["`steps`"]),
        ("n=0", ["`n`"]),
        ("n=65", ["64"]),
        ("seed=-1", ["`seed`"]),
        ("seed=9223372036854775808", ["`seed`"]),
        ("temperature=0", ["0.05"]),
        ("temperature=nan", ["`temperature`"]),
        ("temperature=inf", ["`temperature`"]),
        ("mode=bogus", ["there is no such parameter", "did you mean `model`?"]),
        ("view=side", ["'final'"]),
        ("scale=33", ["32"]),
        ("format=bmp", ["'png'"]),
        ("version=0", ["`version`"]),
        ("version=latest", ["`version`"]),
        ("model=..%2F..%2Fetc", ["`model`"]),
        ("timeout=0", ["`timeout`"]),
        ("method=equilibrium", ["without a ladder", "method=gibbs"]),
        ("steps=1&steps=2", ["twice"]),
        ("step=5&n=0", ["`step`", "`n`"]),
        ("n=64&scale=32", ["`scale`", "smaller"]),
        ("n=64&steps=100&every=1&format=gif", ["`scale`", "larger `every`"]),
        ("n=64&scale=10&format=webp", ["`scale`", "smaller"]),
        ("steps=9000&every=1&view=strip&scale=1&format=webp", ["`every`", "larger"]),
    ],
)
def test_parameters_that_cannot_be_used_are_422(client: TestClient, query: str, words: list[str]) -> None:
    answer = client.get(f"/sample?{query}")
    assert is_problem(answer, 422, *words)
    assert answer.json()["errors"]


def test_many_parameters_are_not_even_looked_at(client: TestClient) -> None:
    """To say of each what it might have meant would hold everybody up."""
    query = "&".join(f"x{number}=1" for number in range(1000))
    assert is_problem(client.get(f"/sample?{query}"), 422, "1,000 parameters", "64")


@pytest.mark.parametrize("path", ["/models", "/filters", "/models/mnist", "/sample"])
def test_unknown_parameters_are_refused(client: TestClient, path: str) -> None:
    assert is_problem(client.get(f"{path}?stepz=1"), 422, "stepz")


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", PNG, 422, ["empty"]),
        (b"not an image", PNG, 415, []),
        (image_bytes("JPEG")[:300], {"Content-Type": "image/jpeg"}, 422, []),
        (b"<svg/>", {"Content-Type": "image/svg+xml"}, 415, ["image/png"]),
        (b"hello", {"Content-Type": "text/plain"}, 415, ["text/plain", "application/json"]),
        (image_bytes(), PNG | {"Content-Encoding": "gzip"}, 415, ["Content-Encoding"]),
        (b"\0" * (1024 * 1024 + 1), PNG, 413, ["1,048,576"]),
        (b"\0" * 300_001, NPY, 413, ["300,000"]),
        (b"{", JSON, 400, ["not JSON"]),
        (b"\xff\xfe\xff", JSON, 400, ["not JSON"]),
        (b"[" * 100_000, JSON, 400, ["not JSON"]),
        (b"[]", JSON, 422, ["images"]),
        (b'{"images": []}', JSON, 422, ["images"]),
        (b'{"image": [[0]]}', JSON, 422, ["images"]),
        (json.dumps({"images": [[0, 1]]}).encode(), JSON, 422, ["[n, 784]", "[1, 2]"]),
        (json.dumps({"images": [ROW, ROW[1:]]}).encode(), JSON, 422, ["one length"]),
        (json.dumps({"images": [[*ROW[1:], float("nan")]]}).encode(), JSON, 422, ["NaN"]),
        (json.dumps({"images": [[*ROW[1:], 1e999]]}).encode(), JSON, 422, ["NaN"]),
        (json.dumps({"images": [[*ROW[1:], 10**400]]}).encode(), JSON, 422, ["images"]),
        (json.dumps({"images": [[*ROW[1:], 2]]}).encode(), JSON, 422, ["0 to 1"]),
        (json.dumps({"images": [[*ROW[1:], -1]]}).encode(), JSON, 422, ["0 to 1"]),
        (json.dumps({"images": [[*ROW[1:], "1"]]}).encode(), JSON, 422, ["numbers"]),
        (json.dumps({"images": [[*ROW[1:], None]]}).encode(), JSON, 422, ["numbers"]),
        (json.dumps({"images": {"0": ROW}}).encode(), JSON, 422, ["numbers"]),
        (json.dumps({"images": [ROW], "mask": ROW}).encode(), JSON, 422, ["nothing else"]),
        (b"\x93NUMPY", NPY, 422, ["NPY"]),
        (b"PK\x03\x04", NPY, 422, ["NPY"]),
        (npy_bytes(np.zeros((2, 784)))[:-8], NPY, 422, ["damaged"]),
        (npy_bytes(np.zeros((0, 784))), NPY, 422, ["above 0"]),
        (npy_bytes(np.zeros((1, 28, 27))), NPY, 422, ["[n, 28, 28]"]),
        (npy_bytes(np.full((1, 784), np.nan)), NPY, 422, ["NaN"]),
        (npy_bytes(np.full((1, 784), 1.5)), NPY, 422, ["0 to 1"]),
        (npy_bytes(np.zeros((1, 784), np.int64)), NPY, 422, ["uint8 or float"]),
        (npy_bytes(np.zeros((1, 784), complex)), NPY, 422, ["uint8 or float"]),
        (npy_bytes(np.array([None, {}]), allow_pickle=True), NPY, 422, ["uint8 or float"]),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, []),
        (b"--b\r\nnonsense", {"Content-Type": "multipart/form-data; boundary=b"}, 422, []),
    ],
)
def test_bodies_that_cannot_be_used(
    client: TestClient, body: bytes, headers: dict[str, str], status: int, words: list[str]
) -> None:
    for path in ("/dream?steps=1", "/features", "/energy"):
        answer = client.post(path, content=body, headers=headers)
        if answer.status_code != status and b"nonsense" in body:
            status = 400
        assert is_problem(answer, status, *words)


def test_a_header_that_lies_about_its_array_costs_nothing(client: TestClient) -> None:
    honest = npy_bytes(np.zeros((1, 784), np.uint8))
    for shape in (b"(999999999999, 784)", b"(-1, -784)", b"(1, 784", b"'x'", b"(1.5, 784)", b"()"):
        lie = honest.replace(b"(1, 784), }" + b" " * (len(shape) - 8), shape + b", }", 1)
        assert is_problem(client.post("/features", content=lie, headers=NPY), 422)


def test_a_chunked_body_is_cut_off_at_the_limit(client: TestClient) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 65536
            yield b"\0" * 65536

    assert is_problem(client.post("/dream", content=chunks(), headers=PNG), 413)


@pytest.mark.parametrize(
    "files",
    [
        {"image": image_bytes()},
        {"file": image_bytes(), "other": image_bytes()},
        {"file": b"\0" * (1024 * 1024 + 1)},
        {"file": b""},
        [("file", image_bytes()), ("file", image_bytes()), ("file", image_bytes())],
    ],
)
def test_forms_that_cannot_be_used(client: TestClient, files: Any) -> None:
    answer = client.post("/dream?steps=1", files=files)
    assert answer.status_code in (400, 413, 415, 422) and is_problem(answer, answer.status_code)


def test_of_several_images_dreams_say_where_they_are_read(client: TestClient) -> None:
    files = [("file", image_bytes()), ("file", image_bytes())]
    assert is_problem(client.post("/dream?steps=1", files=files), 422, "one image", "/features")
    assert client.post("/features", files=files).status_code == 200


def test_inpaint_needs_its_mask(client: TestClient) -> None:
    assert is_problem(client.post("/inpaint", content=image_bytes(), headers=PNG), 415, "multipart/form-data")
    assert is_problem(client.post("/inpaint", files={"file": image_bytes()}), 422, "-F mask=@mask.png")
    broken = client.post("/inpaint", files={"file": image_bytes(), "mask": image_bytes("JPEG")[:300]})
    assert is_problem(broken, 422, "The mask: ")
    assert is_problem(client.post("/inpaint", json={"images": [ROW]}), 422, "mask")
    assert is_problem(client.post("/inpaint", json={"images": [ROW], "mask": [0]}), 422, "`mask`")
    assert is_problem(client.post("/inpaint", json={"images": [ROW], "mask": [ROW] * 2}), 422, "one mask")


def test_too_many_chains_in_all(client: TestClient) -> None:
    assert is_problem(client.post("/dream?n=33", json={"images": [ROW, ROW]}), 422, "64")


def test_what_is_not_there_is_404(client: TestClient) -> None:
    assert is_problem(client.get("/nowhere"), 404)
    assert is_problem(client.get("/sample?model=nobody"), 404, "nobody", "mnist")
    assert is_problem(client.get("/sample?version=77"), 404, "77")
    assert is_problem(client.get("/models/nobody"), 404, "nobody")
    assert is_problem(client.get("/web/..%2Fapp.py"), 404)
    assert is_problem(client.get("/web/../app.py"), 404)
    assert is_problem(client.get("/dream/"), 404)


def test_a_route_without_parameters_says_so(client: TestClient) -> None:
    assert is_problem(client.get("/models?foo=1"), 422, "`foo`", "this route takes none")


def test_an_operator_may_allow_fewer_steps(store: Path) -> None:
    with running_app(settings_for(store, max_steps=100)) as client:
        assert client.get("/sample?steps=100&scale=1").status_code == 200
        assert is_problem(client.get("/sample?steps=101"), 422, "`steps`", "at most 100 on this server")


def test_what_can_never_be_answered_is_not_unchanged(client: TestClient) -> None:
    answer = client.get("/sample?seed=4&n=64&scale=32", headers={"If-None-Match": "*"})
    assert is_problem(answer, 422, "smaller `scale`")


def test_a_wrong_method_is_405_with_allow(client: TestClient) -> None:
    answer = client.post("/sample")
    assert is_problem(answer, 405, "GET") and answer.headers["allow"] == "GET, HEAD"
    assert client.get("/dream").headers["allow"] == "POST"
    assert is_problem(client.request("TRACE", "/models"), 405)


def test_406_names_the_formats(client: TestClient) -> None:
    assert is_problem(client.get("/sample", headers={"Accept": "text/html"}), 406, "png", "npy")
    assert is_problem(client.get("/filters?format=gif"), 406, "png")


def test_a_deadline_that_passes_is_504_or_422(client: TestClient) -> None:
    """Refused when it can be foreseen, dropped when not."""
    answer = client.get("/sample?steps=10000&n=64&timeout=0.1")
    assert answer.status_code in (422, 504) and is_problem(answer, answer.status_code)
    answer = client.get("/sample?steps=10000&n=64", headers={"X-Request-Timeout": "0.1"})
    assert answer.status_code in (422, 504)
    assert is_problem(client.get("/sample", headers={"X-Request-Timeout": "soon"}), 422, "x-request-timeout")


def test_every_problem_has_a_page(client: TestClient) -> None:
    problem = client.get("/sample?step=1").json()
    page = client.get(problem["type"])
    assert page.status_code == 200 and page.json()["title"] == problem["title"] and page.json()["meaning"]


def test_long_heads_are_refused(client: TestClient) -> None:
    assert is_problem(client.get("/sample?model=" + "a" * 9000), 414)
    assert is_problem(client.get("/sample", headers={"X-Long": "a" * 40_000}), 431)


def test_a_defect_of_ours_is_a_500_without_a_trace(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("the secret of /etc/passwd")

    monkeypatch.setattr(client.app.state.registry, "get", broken)  # type: ignore[attr-defined]
    answer = client.get("/sample")
    assert is_problem(answer, 500) and "secret" not in answer.text
