"""Equilibrium samples in company: refused with advice that fits them, fair, cancelled, drained."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_core.engine_numba import NumbaEngine
from model_core.equilibrium import EquilibriumSampler, format_ladder
from model_core.model_store import verify_version
from model_core.randomness import chain_seeds
from service.jobs import Cancelled, NotReady, TooMuch
from service.scheduler import Scheduler, serving_engine
from service.served_model import ServedModel
from tests.service.fakes import outcome, step_by_hand
from tests.service.http_helpers import ServerProcess, load_npy, serving, tiny_params, wait_until
from tests.service.test_equilibrium_route import job_of, publish_with, tiny_ladder
from tests.service.test_server_process import Client, parts

ROUNDS = 1000  # of the server's model: a second or so for a few samples
PATH = "/sample?method=equilibrium&output=samples"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    path = publish_with(tmp_path_factory.mktemp("one"), "mnist", format_ladder(tiny_ladder(2, 200)))
    model = verify_version(path)
    return ServedModel(model, serving_engine().prepare(model.params))


@pytest.mark.parametrize("every", [0, 20])
def test_what_never_fits_is_told_how_many_samples_would(served: ServedModel, every: int) -> None:
    """The ladder gives the number of rounds, so that is not what a client could change."""

    async def run() -> None:
        scheduler = Scheduler(num_threads=1, max_job_seconds=0.2)
        with pytest.raises(TooMuch) as refusal:
            scheduler.submit(job_of(served, 60_000, every=every))
        assert refusal.value.parameter == "n" and 0 < refusal.value.largest < 60_000
        assert f"at most {refusal.value.largest} samples" in refusal.value.reason
        assert "steps" not in refusal.value.reason and "rounds" in refusal.value.reason
        scheduler.submit(job_of(served, refusal.value.largest, every=every), stream=True).cancel()
        with pytest.raises(TooMuch):
            scheduler.submit(job_of(served, refusal.value.largest + 1, every=every), stream=True)
        await scheduler.stop()

    asyncio.run(run())


def test_where_not_even_one_sample_fits_it_says_so(served: ServedModel) -> None:
    async def run() -> None:
        scheduler = Scheduler(num_threads=1, max_job_seconds=1e-6)
        with pytest.raises(TooMuch, match="Not even one") as refusal:
            scheduler.submit(job_of(served))
        assert refusal.value.largest == 0
        scheduler = Scheduler(num_threads=1, clock=lambda: 0.0)
        with pytest.raises(TooMuch, match="longer `timeout`"):
            scheduler.submit(job_of(served, deadline=1e-6))

    asyncio.run(run())


def test_short_chains_pass_a_long_equilibrium_job_and_do_not_starve_it(served: ServedModel) -> None:
    async def run() -> None:
        scheduler = Scheduler(num_threads=1, slice_seconds=0.0001)
        long = scheduler.submit(job_of(served, 2, num_steps=3000))
        step_by_hand(scheduler, 3)
        for _ in range(20):  # each is over within a few slices, though the long one was there first
            short = scheduler.submit(job_of(served, mode="gibbs", num_steps=2))
            step_by_hand(scheduler, 4)
            assert isinstance(await outcome(short), list) and not long.ended
        slices = 0
        while not long.ended:  # short ones without end: one slice in four is for the oldest
            scheduler.submit(job_of(served, mode="gibbs", num_steps=2))
            slices += step_by_hand(scheduler, 1)
            assert slices < 100_000
        frames = await outcome(long)
        assert isinstance(frames, list) and served.sampler is not None
        assert (frames[-1].visible == served.sampler.sample(chain_seeds(1, 2), 3000)[0]).all()
        await scheduler.stop()

    asyncio.run(run())


def test_draining_finishes_equilibrium_jobs_and_takes_no_more(served: ServedModel) -> None:
    async def run() -> None:
        scheduler = Scheduler(num_threads=2, slice_seconds=0.0005)
        tickets = [scheduler.submit(job_of(served, 3, seed=seed)) for seed in range(4)]
        draining = asyncio.ensure_future(scheduler.drain())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            scheduler.submit(job_of(served))
        scheduler.start()
        await draining
        for seed, ticket in enumerate(tickets):
            frames = await outcome(ticket)
            assert isinstance(frames, list) and served.sampler is not None
            assert (frames[-1].visible == served.sampler.sample(chain_seeds(seed, 3))[0]).all()
        await scheduler.stop()

    asyncio.run(run())


def test_a_stop_ends_equilibrium_jobs(served: ServedModel) -> None:
    async def run() -> None:
        scheduler = Scheduler(num_threads=1, slice_seconds=0.0001)
        ticket = scheduler.submit(job_of(served, 2))
        step_by_hand(scheduler, 2)
        await scheduler.stop()
        assert isinstance(await outcome(ticket), Cancelled)

    asyncio.run(run())


# Against a real server.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    publish_with(tmp_path / "checkpoints", "mnist", format_ladder(tiny_ladder(2, ROUNDS)))
    with serving(tmp_path / "checkpoints", RBM_DRAIN_DELAY="0.2") as server:
        yield server


def test_sigterm_finishes_equilibrium_samples_and_streams(server: ServerProcess) -> None:
    requests = [Client(server, f"{PATH}&n=2&seed={seed}&format=npy") for seed in range(3)]
    streams = [Client(server, f"{PATH}&n=2&every=500&format=sse") for _ in range(3)]
    wait_until(lambda: b"\nrbm_running_chains 12.0" in server.get("/metrics"))
    server.process.send_signal(signal.SIGTERM)
    for client in (*requests, *streams):
        client.join()
    assert server.process.wait(timeout=30) == 0
    sampler = EquilibriumSampler(tiny_params(), tiny_ladder(2, ROUNDS), NumbaEngine(num_threads=1))
    for seed, client in enumerate(requests):
        status, _, body = parts(client.answer)
        assert status == 200
        np.testing.assert_array_equal(load_npy(body).reshape(2, 784), sampler.sample(chain_seeds(seed, 2))[0])
    assert all(b"event: done" in client.answer for client in streams)


def test_a_client_that_leaves_an_equilibrium_sample_frees_the_engine(server: ServerProcess) -> None:
    for form in ("npy", "sse"):
        with server.connect() as connection:
            connection.sendall(f"GET {PATH}&n=16&format={form} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            wait_until(lambda: b"\nrbm_running_chains 16.0" in server.get("/metrics"))
        wait_until(lambda: b"\nrbm_running_chains 0.0" in server.get("/metrics"))
    cancelled = re.findall(r"\nrbm_cancelled_total{.*} (\S+)", server.get("/metrics").decode())
    assert sum(map(float, cancelled)) == 2


def test_a_timeout_that_cannot_be_met_names_the_samples_that_fit(server: ServerProcess) -> None:
    status, _, body = parts(server.get(f"{PATH}&n=64&timeout=0.1"))
    problem = json.loads(body)
    assert status == 422 and problem["errors"][0]["parameter"] == "n", problem
    assert "`timeout`" in problem["detail"] and "fewer steps" not in problem["detail"]
