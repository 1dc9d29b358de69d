"""Every route answers what DESIGN section 7 says, in every format, with its headers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model_core.chains import run_chains
from model_core.randomness import chain_seeds, noise
from model_core.rbm import free_energy, hidden_logits, hidden_probs
from tests.service.http_helpers import (
    MEDIA,
    NUM_HIDDEN,
    digit,
    image_bytes,
    is_problem,
    load_npy,
    npy_bytes,
    publish_tiny,
    running_app,
    settings_for,
    tiny_params,
)

ROWS = np.random.default_rng(5).integers(0, 2, (3, 784))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    checkpoints = tmp_path_factory.mktemp("store") / "checkpoints"
    publish_tiny(checkpoints)
    publish_tiny(checkpoints, "other", seed=1)
    publish_tiny(checkpoints, "other", seed=2)
    with running_app(settings_for(checkpoints)) as client:
        yield client


def post_image(client: TestClient, path: str, **headers: str) -> Any:
    return client.post(path, content=image_bytes(), headers={"Content-Type": "image/png", **headers})


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_sample_is_a_picture_of_the_right_size_with_all_headers(client: TestClient) -> None:
    answer = client.get("/sample?steps=5&scale=3")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert opened(answer.content).size == (84, 84)
    assert answer.headers["rbm-model"] == "mnist" and answer.headers["rbm-version"] == "1"
    assert answer.headers["rbm-steps"] == "5" and 0 <= int(answer.headers["rbm-seed"]) < 2**63
    assert "gibbs;dur=" in answer.headers["server-timing"]
    assert answer.headers["cache-control"] == "no-store" and "etag" not in answer.headers
    assert answer.headers["vary"] == "Accept"


def test_samples_are_the_chains_of_the_library(client: TestClient) -> None:
    answer = client.get("/sample?steps=7&n=3&seed=11&output=samples&format=npy&temperature=1.5")
    seeds = chain_seeds(11, 3)
    expected = run_chains(tiny_params(), noise(seeds, 784), num_steps=7, seeds=seeds, temperature=1.5)
    assert np.array_equal(load_npy(answer.content), expected.reshape(3, 28, 28))


def test_dream_of_binary_pixels_starts_at_them(client: TestClient) -> None:
    answer = client.post("/dream?steps=4&n=2&seed=9&output=samples&format=npy", json={"images": ROWS[:1].tolist()})
    start = np.repeat(ROWS[:1], 2, axis=0).astype(np.uint8)
    expected = run_chains(tiny_params(), start, num_steps=4, seeds=chain_seeds(9, 2))
    assert np.array_equal(load_npy(answer.content), expected.reshape(2, 28, 28))


def test_no_step_gives_the_upload_back(client: TestClient) -> None:
    """An image that looks like MNIST passes through untouched."""
    answer = client.post(
        "/dream?steps=0&output=samples&format=npy", content=image_bytes(), headers={"Content-Type": "image/png"}
    )
    assert np.array_equal(load_npy(answer.content)[0], np.asarray(digit()) // 255)


@pytest.mark.parametrize("query", ["", "&every=2", "&view=pair", "&view=strip", "&n=3&view=pair&every=1"])
@pytest.mark.parametrize("format_name", list(MEDIA))
def test_every_format_and_view(client: TestClient, format_name: str, query: str) -> None:
    for answer in (
        client.get(f"/sample?steps=4&seed=1&format={format_name}{query}"),
        post_image(client, f"/dream?steps=4&seed=1{query}", Accept=MEDIA[format_name]),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].partition(";")[0] == MEDIA[format_name]
        if format_name in ("png", "gif", "webp", "apng"):
            opened(answer.content).load()


def test_gif_moves_and_png_does_not(client: TestClient) -> None:
    assert getattr(opened(client.get("/sample?steps=60&seed=1&format=gif").content), "n_frames", 1) > 5
    assert getattr(opened(client.get("/sample?steps=60&seed=1&format=png").content), "n_frames", 1) == 1


def test_json_of_the_image_routes(client: TestClient) -> None:
    body = client.get("/sample?steps=3&n=2&seed=5&output=samples&pixels=true&format=json").json()
    assert (body["model"], body["version"], body["seed"], body["steps"], body["temperature"]) == ("mnist", 1, 5, 3, 1.0)
    pixels = np.array(body["pixels"])
    assert pixels.shape == (2, 784)
    assert np.allclose(body["free_energy"], free_energy(tiny_params(), pixels), atol=1e-5)
    assert opened(base64.b64decode(body["images"][1])).size == (224, 224)
    assert "pixels" not in client.get("/sample?steps=3&format=json").json()


def test_frames_come_with_every(client: TestClient) -> None:
    frames = load_npy(client.get("/sample?steps=5&n=2&every=2&seed=3&format=npy&output=samples").content)
    assert frames.shape == (4, 2, 28, 28)  # the start, steps 2, 4 and 5
    assert np.array_equal(frames[0].reshape(2, -1), noise(chain_seeds(3, 2), 784))
    last = load_npy(client.get("/sample?steps=5&n=2&seed=3&format=npy&output=samples").content)
    assert np.array_equal(frames[-1], last)


def test_a_seed_repeats_the_bytes_and_none_differs(client: TestClient) -> None:
    first, second = (post_image(client, "/dream?steps=5&seed=4").content for _ in range(2))
    assert first == second
    first, second = (post_image(client, "/dream?steps=5&output=samples").content for _ in range(2))
    assert first != second
    drawn = client.get("/sample?steps=5")
    again = client.get(f"/sample?steps=5&seed={drawn.headers['rbm-seed']}")
    assert again.content == drawn.content


def test_etag_and_304(client: TestClient) -> None:
    first = client.get("/sample?steps=5&seed=4")
    assert "max-age" in first.headers["cache-control"]
    again = client.get("/sample?steps=5&seed=4", headers={"If-None-Match": f'"x", {first.headers["etag"]}'})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    for other in ("seed=5", "seed=4&n=2", "seed=4&format=json", "seed=4&model=other", "seed=4&scale=7"):
        assert client.get(f"/sample?steps=5&{other}").headers["etag"] != first.headers["etag"], other


def test_head_is_get_without_the_body(client: TestClient) -> None:
    head, got = client.head("/sample?steps=5&seed=4"), client.get("/sample?steps=5&seed=4")
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers["etag"] == got.headers["etag"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_features_of_files_in_all_formats(client: TestClient, kind: str) -> None:
    answer = client.post("/features", content=image_bytes(kind), headers={"Content-Type": f"image/{kind.lower()}"})
    body = answer.json()
    assert body["shape"] == [1, NUM_HIDDEN] and (body["model"], body["kind"]) == ("mnist", "probabilities")
    if kind not in ("JPEG", "WEBP"):  # these two lose a little, and the digit may be centred anew
        expected = hidden_probs(tiny_params(), np.asarray(digit()).reshape(1, -1) / 255)
        assert np.allclose(body["features"], expected, atol=1e-5)


def test_an_upload_without_a_type_is_read_by_its_content(client: TestClient) -> None:
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert client.post("/features", content=image_bytes(), headers=headers).status_code == 200
        assert client.post("/features", content=npy_bytes(ROWS.astype(np.uint8)), headers=headers).status_code == 200


def test_features_take_several_files_and_arrays(client: TestClient) -> None:
    files = [("file", ("a.png", image_bytes(), "image/png"))] * 3
    assert client.post("/features", files=files).json()["shape"] == [3, NUM_HIDDEN]
    expected = hidden_probs(tiny_params(), ROWS)
    for array in (ROWS.astype(np.uint8), ROWS.astype(np.float32), (255 * ROWS).astype(np.uint8).reshape(3, 28, 28)):
        answer = client.post(
            "/features?format=npy", content=npy_bytes(array), headers={"Content-Type": "application/x-npy"}
        )
        assert np.allclose(load_npy(answer.content), expected, atol=1e-6)
    assert np.allclose(client.post("/features", json={"images": ROWS.tolist()}).json()["features"], expected, atol=1e-6)


def test_kinds_of_features(client: TestClient) -> None:
    body = {"images": ROWS.tolist()}
    logits = client.post("/features?kind=logits", json=body).json()["features"]
    assert np.allclose(logits, hidden_logits(tiny_params(), ROWS), atol=1e-5)
    samples = client.post("/features?kind=samples&seed=3", json=body)
    assert set(np.ravel(samples.json()["features"])) <= {0, 1}
    assert samples.json()["seed"] == 3 and samples.headers["rbm-seed"] == "3"
    assert samples.content == client.post("/features?kind=samples&seed=3", json=body).content
    table = client.post("/features?format=csv", json=body).text.splitlines()
    assert len(table) == 4 and len(table[1].split(",")) == NUM_HIDDEN


def test_energy_is_the_free_energy_and_its_percentile(client: TestClient) -> None:
    body = client.post("/energy", json={"images": ROWS.tolist()}).json()
    expected = free_energy(tiny_params(), ROWS)
    assert np.allclose(body["free_energy"], expected, atol=1e-4)
    # The helper publishes percentiles from -400 to 100: 5 nats each.
    assert np.allclose(body["surprise"], np.clip((expected + 400) / 5, 0, 100), atol=1.01)
    assert load_npy(client.post("/energy?format=npy", json={"images": ROWS.tolist()}).content).shape == (3, 2)
    assert client.post("/energy?format=csv", json={"images": ROWS.tolist()}).text.count("\n") == 4


def test_inpaint_keeps_what_the_mask_marks(client: TestClient) -> None:
    mask = np.zeros((28, 28), int)
    mask[:14] = 1
    body = {"images": ROWS[:1].tolist(), "mask": mask.ravel().tolist()}
    for keep, kept in (("white", mask == 1), ("black", mask == 0)):
        answer = client.post(f"/inpaint?steps=20&n=4&seed=2&output=samples&format=npy&keep={keep}", json=body)
        chains = load_npy(answer.content)
        assert (chains[:, kept] == ROWS[0].reshape(28, 28)[kept]).all()
        assert (chains[:, ~kept] != ROWS[0].reshape(28, 28)[~kept]).any()
    picture = Image.fromarray((255 * mask).astype(np.uint8))
    files = {"file": image_bytes(), "mask": image_bytes(image=picture)}
    chains = load_npy(client.post("/inpaint?steps=20&seed=2&output=samples&format=npy", files=files).content)
    assert np.array_equal(chains[0, :14], np.asarray(digit())[:14] // 255)


def test_grey_pixels_that_are_kept_are_shown_as_they_came(client: TestClient) -> None:
    grey = np.full((28, 28), 0.5)
    body = {"images": [grey.ravel().tolist()], "mask": (np.arange(784) < 392).astype(int).tolist()}
    shown, states = (
        load_npy(client.post(f"/inpaint?steps=20&seed=2&output={output}&format=npy", json=body).content)[0]
        for output in ("probabilities", "samples")
    )
    assert (shown[:14] == 0.5).all() and (shown[14:] != 0.5).all()
    assert set(np.unique(states[:14])) == {0, 1}  # what the chain is held at


def test_energies_as_csv_are_numbers(client: TestClient) -> None:
    table = client.post("/energy?format=csv", json={"images": ROWS[:3].tolist()}).text
    numbers = client.post("/energy?format=npy", json={"images": ROWS[:3].tolist()}).content
    head, *rows = table.splitlines()
    assert head == "image,free_energy,surprise" and [row.split(",")[0] for row in rows] == ["0", "1", "2"]
    found = np.array([[float(value) for value in row.split(",")[1:]] for row in rows])
    np.testing.assert_allclose(found, load_npy(numbers), atol=0.005)


def test_mean_field_is_deterministic(client: TestClient) -> None:
    first, second = (post_image(client, f"/dream?steps=5&mode=mean_field&seed={seed}").content for seed in (1, 2))
    assert first == second


@pytest.mark.parametrize("format_name", ["png", "webp", "json", "npy"])
def test_filters(client: TestClient, format_name: str) -> None:
    answer = client.get(f"/filters?n=5&format={format_name}")
    assert answer.status_code == 200 and answer.headers["content-type"] == MEDIA[format_name]
    assert answer.headers["etag"]
    unchanged = client.get(f"/filters?n=5&format={format_name}", headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304
    if format_name == "npy":
        norms = np.linalg.norm(tiny_params().weights, axis=0)
        strongest = tiny_params().weights.T[np.argsort(-norms, kind="stable")[:5]]
        assert np.allclose(load_npy(answer.content), strongest.reshape(5, 28, 28))


def test_models_and_card(client: TestClient) -> None:
    models = {entry["name"]: entry for entry in client.get("/models").json()["models"]}
    assert set(models) == {"mnist", "other"} and models["other"]["version"] == 2
    card = client.get("/models/other").json()
    assert card["version"] == 2 and card["manifest"]["image_shape"] == [28, 28]


def test_model_and_version_choose(client: TestClient) -> None:
    newest, pinned = (client.get(f"/sample?steps=3&seed=1&model=other{query}") for query in ("", "&version=1"))
    assert (newest.headers["rbm-version"], pinned.headers["rbm-version"]) == ("2", "1")
    assert pinned.headers["rbm-model"] == "other" and newest.content != pinned.content


def test_probes_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "alive"
    assert client.get("/readyz").json()["status"] == "ready"
    client.get("/sample?steps=1")
    text = client.get("/metrics").text
    assert 'rbm_requests_total{code="200",endpoint="/sample"}' in text


def test_a_new_version_is_picked_up(tmp_path: Path) -> None:
    with running_app(settings_for(tmp_path / "checkpoints"), ready=False) as client:
        assert client.get("/healthz").status_code == 200
        assert is_problem(client.get("/readyz"), 503)
        assert is_problem(client.get("/sample"), 503) and client.get("/sample").headers["retry-after"]
        publish_tiny(tmp_path / "checkpoints")
        from tests.service.http_helpers import wait_until

        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/sample?steps=1").status_code == 200
