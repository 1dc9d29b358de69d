"""What a query string said is remembered, and neither an error nor one client's change to it comes to another."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

from service import parameter_route, schemas
from tests.service.http_helpers import image_bytes


def test_the_same_query_is_answered_alike_and_read_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/sample?steps=3&seed=41&scale=1"
    first = client.get(path)
    monkeypatch.setattr(parameter_route, "_checked", lambda *_: pytest.fail("read once more"))
    second = client.get(path)
    assert first.status_code == second.status_code == 200 and first.content == second.content


def test_a_wrong_query_is_refused_every_time(client: TestClient) -> None:
    answers = [client.get("/sample?step=3") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422] * 3
    assert all("did you mean `steps`" in answer.json()["detail"] for answer in answers)


def test_without_a_seed_each_request_draws_its_own(client: TestClient) -> None:
    seeds = {client.get("/sample?steps=0&scale=1").headers["RBM-Seed"] for _ in range(5)}
    assert len(seeds) == 5


def test_one_route_does_not_answer_with_the_parameters_of_another(client: TestClient) -> None:
    query = "?seed=1"
    assert client.get(f"/sample{query}").headers["RBM-Steps"] == "500"
    dream = client.post(f"/dream{query}", content=image_bytes(), headers={"Content-Type": "image/png"})
    assert dream.headers["RBM-Steps"] == "20"
    assert client.get(f"/filters{query}").status_code == 422


def test_no_parameters_can_be_changed() -> None:
    models = [one for one in vars(schemas).values() if isinstance(one, type) and issubclass(one, BaseModel)]
    parameters = [one for one in models if one.__name__.endswith("Params")]
    assert len(parameters) >= 8 and all(one.model_config.get("frozen") for one in parameters)
    with pytest.raises(ValidationError, match="frozen"):
        schemas.SampleParams().steps = 3  # type: ignore[misc]
