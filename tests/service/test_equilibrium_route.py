"""`GET /sample?method=equilibrium`: same seed, same bytes; alone or in company; refused clearly where it cannot be."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model_core.equilibrium import EquilibriumSampler, Ladder, format_ladder
from model_core.model_store import publish, verify_version
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams, checked_params
from service.jobs import Cancelled, ChainJob, DeadlinePassed
from service.scheduler import Scheduler, serving_engine
from service.served_model import ServedModel
from tests.service.fakes import outcome, step_by_hand
from tests.service.http_helpers import (
    is_problem,
    load_npy,
    publish_tiny,
    running_app,
    settings_for,
    tiny_params,
    wait_until,
)

ROUNDS = 12


def tiny_ladder(num_rungs: int = 2, num_rounds: int = ROUNDS) -> Ladder:
    params = tiny_params()
    rungs = [checked_params(*(factor * array for array in params)) for factor in np.linspace(0.8, 0.9, num_rungs)]
    return Ladder(tuple(rungs), noise(chain_seeds(4, 100), 784), num_rounds)


def publish_with(checkpoints: Path, name: str, ladder: bytes, params: RBMParams | None = None) -> Path:
    files = {"ladder.safetensors": ladder}
    return publish(checkpoints, name, params or tiny_params(), image_shape=(28, 28), manifest={}, extra_files=files)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    publish_with(checkpoints, "mnist", format_ladder(tiny_ladder()))
    publish_with(checkpoints, "own", format_ladder(tiny_ladder(0)))
    publish_with(checkpoints, "odd", b"not a ladder")
    publish_tiny(checkpoints, "plain")
    with running_app(settings_for(checkpoints)) as client:
        wait_until(lambda: len(client.get("/models").json()["models"]) == 4)
        yield client


@pytest.mark.parametrize(("model", "num_rungs"), [("mnist", 2), ("own", 0)])
def test_it_gives_the_samplers_own_bits(client: TestClient, model: str, num_rungs: int) -> None:
    query = f"/sample?method=equilibrium&n=5&seed=3&output=samples&format=npy&model={model}"
    answer = client.get(query)
    assert answer.status_code == 200, answer.text
    sampler = EquilibriumSampler(tiny_params(), tiny_ladder(num_rungs))
    assert (load_npy(answer.content).reshape(5, 784) == sampler.sample(chain_seeds(3, 5))[0]).all()
    assert answer.headers["RBM-Steps"] == str(ROUNDS) and answer.headers["RBM-Seed"] == "3"
    assert client.get(query).content == answer.content
    again = client.get(query, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("format_name", ["png", "gif", "webp", "apng", "json", "npy", "csv", "sse"])
def test_every_format(client: TestClient, format_name: str) -> None:
    answer = client.get(f"/sample?method=equilibrium&n=2&seed=3&scale=1&format={format_name}")
    assert answer.status_code == 200 and answer.content
    if format_name == "sse":
        assert "event: done" in answer.text and "event: error" not in answer.text
        assert f'"step": {ROUNDS}}}' in answer.text and "event: frame" in answer.text


def test_frames_do_not_change_the_sample(client: TestClient) -> None:
    query = "/sample?method=equilibrium&n=2&seed=3&format=npy"
    frames = load_npy(client.get(f"{query}&every=5").content)
    assert len(frames) == 4, "the start, rounds 5 and 10, and the last"
    assert (frames[-1] == load_npy(client.get(query).content)).all()


def test_a_strip_has_a_column_a_frame(client: TestClient) -> None:
    answer = client.get("/sample?method=equilibrium&n=2&view=strip&scale=1&every=4")
    assert Image.open(io.BytesIO(answer.content)).width > 3 * 28


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("model=plain", ["`method`", "ladder", "method=gibbs"]),
        ("model=odd", ["`method`", "ladder"]),
        ("steps=500", ["`steps`", "leave `steps` out"]),
        ("temperature=2", ["`temperature`"]),
    ],
)
def test_what_cannot_be_is_refused(client: TestClient, query: str, words: list[str]) -> None:
    assert is_problem(client.get(f"/sample?method=equilibrium&{query}"), 422, *words)


def test_a_model_with_a_bad_ladder_is_served_all_the_same(client: TestClient) -> None:
    assert client.get("/sample?model=odd&steps=3").status_code == 200


# In the scheduler.


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    path = publish_with(tmp_path_factory.mktemp("one"), "mnist", format_ladder(tiny_ladder(2, 200)))
    model = verify_version(path)
    return ServedModel(model, serving_engine().prepare(model.params))


def job_of(served: ServedModel, num_chains: int = 1, seed: int = 1, **options: object) -> ChainJob:
    seeds = chain_seeds(seed, num_chains)
    assert served.sampler is not None
    start = served.sampler.draw_foot(seeds)
    options = {"num_steps": 200, "mode": "equilibrium"} | options
    return ChainJob(model=served, visible=start, seeds=seeds, **options)  # type: ignore[arg-type]


def test_company_and_slices_change_nothing(served: ServedModel) -> None:
    async def run() -> None:
        scheduler = Scheduler(num_threads=1, slice_seconds=0.0001)
        jobs = [job_of(served, 3), job_of(served, 2, seed=2, every=7), job_of(served, mode="gibbs")]
        tickets = [scheduler.submit(job) for job in jobs]
        assert step_by_hand(scheduler) > 10, "many slices"
        for job, ticket in zip(jobs[:2], tickets[:2], strict=True):
            frames = await outcome(ticket)
            assert isinstance(frames, list)
            assert served.sampler is not None
            states, probs = served.sampler.sample(job.seeds)
            assert (frames[-1].visible == states).all() and (frames[-1].visible_probs == probs).all()
        await scheduler.stop()

    asyncio.run(run())


def test_it_can_be_cancelled_and_keeps_deadlines(served: ServedModel) -> None:
    async def run() -> None:
        now = [0.0]
        scheduler = Scheduler(num_threads=1, slice_seconds=0.0001, clock=lambda: now[0])
        left, late = scheduler.submit(job_of(served, 2)), scheduler.submit(job_of(served, 2, deadline=100.0))
        step_by_hand(scheduler, 1)
        left.cancel()
        now[0] = 101.0
        step_by_hand(scheduler)
        assert isinstance(await outcome(left), Cancelled) and isinstance(await outcome(late), DeadlinePassed)
        await scheduler.stop()

    asyncio.run(run())


def test_a_failure_in_company_spares_the_others(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slice is tried again, job by job, from where it was: the spared one gives its own bits."""
    right, bad = EquilibriumSampler.advance, chain_seeds(66, 1)

    def planted(self: EquilibriumSampler, replicas: object, seeds: np.ndarray, num_rounds: int) -> object:
        if (seeds == bad).any():
            raise ArithmeticError("planted")
        return right(self, replicas, seeds, num_rounds)  # type: ignore[arg-type]

    async def run() -> None:
        scheduler = Scheduler(num_threads=1, slice_seconds=1.0)
        good = job_of(served, 2)
        assert served.sampler is not None
        states, _ = served.sampler.sample(good.seeds)
        monkeypatch.setattr(EquilibriumSampler, "advance", planted)
        tickets = [scheduler.submit(good), scheduler.submit(job_of(served, seed=66))]
        step_by_hand(scheduler)
        frames, failure = await outcome(tickets[0]), await outcome(tickets[1])
        assert isinstance(frames, list) and (frames[-1].visible == states).all()
        assert isinstance(failure, Exception)
        await scheduler.stop()

    asyncio.run(run())


def test_admission_knows_what_a_round_costs(served: ServedModel) -> None:
    assert job_of(served).kind.num_hidden == 4 * job_of(served, mode="gibbs").kind.num_hidden
