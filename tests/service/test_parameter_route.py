"""What a query string said is remembered, and neither an error nor one client's change to it comes to another."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service import parameter_route
from service.schemas import SampleParams


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
    answer = client.post(f"/dream{query}", content=b"", headers={"Content-Type": "image/png"})
    assert answer.status_code != 200
    assert client.get(f"/filters{query}").status_code == 422


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SampleParams().steps = 3  # type: ignore[misc]
