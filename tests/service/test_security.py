"""Keys, headers, origins and paths."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.middleware import OPEN_PATHS
from service.settings import Settings, is_loopback, unknown_variables
from tests.service.http_helpers import is_problem, publish_tiny, running_app, settings_for

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoints = tmp_path_factory.mktemp("store") / "checkpoints"
    publish_tiny(checkpoints)
    return checkpoints


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"X-API-Key": "clé"}])
def test_a_right_key_opens(store: Path, headers: dict[str, str]) -> None:
    with running_app(settings_for(store, api_keys=f"other, {KEY} ,clé")) as client:
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        assert client.get("/models", headers=encoded).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-API-Key": ""}, {"X-API-Key": KEY + "x"}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}],
)
def test_a_wrong_key_is_401_everywhere_but_on_open_paths(store: Path, headers: dict[str, str]) -> None:
    with running_app(settings_for(store, api_keys=KEY)) as client:
        for path in ("/models", "/sample", "/metrics", "/nowhere", f"/sample?api_key={KEY}", "/filters"):
            answer = client.get(path, headers=headers)
            assert is_problem(answer, 401, "X-API-Key") and answer.headers["www-authenticate"] == "Bearer"
        assert is_problem(client.post("/dream", content=b"x" * 2_000_000, headers=headers), 401)
        for path in OPEN_PATHS:
            assert client.get(path, headers=headers).status_code in (200, 404), path
        assert client.get("/openapi.json").json()["security"] == [{"key": []}]
        assert client.get("/").text == client.get("/docs").text  # a page whose pictures would all be refused is none


def test_keys_from_a_file(store: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n{KEY}  # laptop\n\nsecond\n")
    settings = settings_for(store, api_keys_file=keys)
    assert settings.key_digests() == [hashlib.sha256(key.encode()).digest() for key in (KEY, "second")]
    keys.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        settings.key_digests()
    with pytest.raises(ValueError, match="cannot be read"):
        settings_for(store, api_keys_file=tmp_path / "missing").key_digests()


def test_keys_do_not_show_in_a_print_of_the_settings(store: Path) -> None:
    assert KEY not in repr(settings_for(store, api_keys=KEY))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(host: str) -> None:
    Settings(host=host).check_exposure()
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_public_address_needs_a_key_or_consent(host: str) -> None:
    with pytest.raises(ValueError, match="RBM_API_KEYS"):
        Settings(host=host).check_exposure()
    Settings(host=host, api_keys=KEY).check_exposure()
    Settings(host=host, insecure=True).check_exposure()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBM_PORT", "8123")
    monkeypatch.setenv("RBM_CORS_ORIGINS", "https://a.example/, https://b.example")
    settings = Settings()
    assert settings.port == 8123 and settings.cors_origins == ["https://a.example", "https://b.example"]
    monkeypatch.setenv("RBM_CORS_ORIGINS", "*")
    with pytest.raises(ValueError, match="exact origins"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RBM_IDLE_SECONDS", "inf"), ("RBM_DRAIN_SECONDS", "1e400"), ("RBM_RELOAD_SECONDS", "1e10"),
        ("RBM_DRAIN_DELAY", "nan"), ("RBM_CORS_ORIGINS", "example.org"), ("RBM_CORS_ORIGINS", "https://*.example.org"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name.removeprefix("RBM_").lower()):
        Settings()


def test_an_empty_folder_of_models_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBM_CHECKPOINTS", "")
    assert Settings().checkpoints is None


def test_a_misspelt_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBM_API_KEY", KEY)
    assert "RBM_API_KEY (did you mean RBM_API_KEYS?)" in unknown_variables()
    assert not any(KEY in told for told in unknown_variables())


@pytest.fixture(scope="module")
def client(store: Path) -> TestClient:  # type: ignore[misc]
    with running_app(settings_for(store, cors_origins="https://good.example")) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/sample?steps=1", 200), ("GET", "/models", 200), ("GET", "/docs", 200), ("GET", "/", 200),
        ("GET", "/nowhere", 404), ("POST", "/sample", 405), ("GET", "/sample?step=1", 422), ("POST", "/dream", 422),
        ("GET", "/sample?model=" + "a" * 9000, 414), ("GET", "/metrics", 200), ("GET", "/openapi.json", 200),
    ],
)  # fmt: skip
def test_security_headers_are_on_every_answer(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src 'unsafe" not in policy
    assert answer.headers["x-request-id"] and "server" not in answer.headers


def test_request_ids_are_kept_if_they_are_harmless(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc.1-2_3"}).headers["x-request-id"] == "abc.1-2_3"
    for bad in ("a b", "x" * 65, "<script>", ""):
        given = client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert given != bad and len(given) == 32


def test_cors_is_off_by_default_and_exact_when_on(client: TestClient, store: Path) -> None:
    good, bad = ({"Origin": f"https://{name}.example"} for name in ("good", "bad"))
    assert client.get("/models", headers=good).headers["access-control-allow-origin"] == good["Origin"]
    assert "access-control-allow-origin" not in client.get("/models", headers=bad).headers
    for path, status in (("/nowhere", 404), ("/sample?step=1", 422), ("/sample?model=" + "a" * 9000, 414)):
        refused = client.get(path, headers=good)  # a page may read why
        assert refused.status_code == status and refused.headers["access-control-allow-origin"] == good["Origin"]
        assert "Origin" in refused.headers["vary"]
    preflight = client.options("/dream", headers=good | {"Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 200 and preflight.headers["x-content-type-options"] == "nosniff"
    refused = client.options("/dream", headers=bad | {"Access-Control-Request-Method": "POST"})
    assert is_problem(refused, 400, "Disallowed CORS origin") and refused.headers["x-content-type-options"] == "nosniff"
    with running_app(settings_for(store)) as closed:
        assert "access-control-allow-origin" not in closed.get("/models", headers=good).headers


@pytest.mark.parametrize(
    "path",
    [
        "/web/../settings.py", "/web/%2e%2e/settings.py", "/web/..%2fsettings.py", "/web/%2Fetc%2Fpasswd", "/web/",
        "/web/a%00.css", "/models/..%2Fmnist", "/models/%00", "/models/MNIST", "/sample?model=%2e%2e",
    ],
)  # fmt: skip
def test_no_text_of_a_client_becomes_a_path(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


def test_files_of_the_pages_are_cached_by_their_content(client: TestClient) -> None:
    first = client.get("/web/docs.js")
    assert first.status_code == 200 and first.headers["content-type"].startswith("text/javascript")
    assert client.get("/web/docs.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
