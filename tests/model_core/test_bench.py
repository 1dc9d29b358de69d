"""The arithmetic of `rbm bench` and a smoke run of each kind. How fast anything is, is not tested here."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_core import bench, bench_chains, bench_process, bench_service, bench_train, cli_bench
from model_core.chains import get_engine
from model_core.cli_support import CliError
from model_core.rbm import RBMParams


@pytest.fixture
def small() -> RBMParams:
    return bench_chains.synthetic_params(20, 12)


# Arithmetic.


def test_rates_are_medians_over_rounds() -> None:
    found = bench.rates({"a": [0.5, 0.1, 10.0]}, amount=8)
    assert found == {"a": {"median": 16.0, "best": 80.0, "rounds": [16.0, 80.0, 0.8]}}


def test_a_ratio_is_against_the_fastest_that_is_there() -> None:
    rates = {"us": {"median": 30.0}, "slow": {"median": 3.0}, "fast": {"median": 10.0}}
    assert bench.ratio(rates, "us", ["slow", "fast", "absent"]) == 3.0
    assert bench.ratio(rates, "us", ["absent"]) is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_quantiles_are_nearest_ranks(share: float, expected: int) -> None:
    assert bench.quantile(range(100, 0, -1), share) == expected
    assert bench.quantile([], share) is None


@pytest.mark.parametrize(
    ("value", "below", "reached"), [(2.0, False, True), (1.9, False, False), (2.1, True, False), (None, True, None)]
)
def test_a_line_is_reached_at_its_bound(value: float | None, below: bool, reached: bool | None) -> None:
    assert bench.line("x", value, 2.0, below=below)["reached"] is reached


def test_everybody_is_timed_in_turn_with_work_of_about_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the work moves: 1 ms and 20 ms a repetition."""
    now, order = [0.0], []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: None))

    def work(name: str, cost: float) -> bench.Work:
        def run(count: int) -> None:
            now[0] += cost * count
            order.append((name, count))

        return run

    found = bench.time_in_turn({"quick": work("quick", 0.001), "slow": work("slow", 0.02)}, rounds=3, seconds=0.1)
    assert order[-6:] == [("quick", 100), ("slow", 5)] * 3
    assert [statistics.median(found[name]) for name in ("quick", "slow")] == pytest.approx([0.001, 0.02])


def test_tables_have_one_width_and_show_what_is_missing() -> None:
    table = bench.markdown(("name", "rate"), [("a", 123456.7), ("long name", None)]).splitlines()
    assert len({len(row) for row in table}) == 1
    assert "123,457" in table[2] and "–" in table[3]


def test_only_loopback_is_loaded() -> None:
    assert bench_process.existing("http://127.0.0.1:8123") == bench_process.ServerProcess("127.0.0.1", 8123)
    for url in ("http://example.org", "https://127.0.0.1", "127.0.0.1:80"):
        with pytest.raises(bench_process.ServerError, match="only http://127"):
            bench_process.existing(url)


# Smoke runs.


def test_chains_bench_runs_and_judges_itself(small: RBMParams) -> None:
    figures = bench_chains.run(small, bench_chains.Options(sizes=(1, 64), rounds=2, seconds=0.001))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert {"bench", "schema", "computer", "units", "chain_steps_per_second", "lines"} <= figures.keys()
    for row in figures["chain_steps_per_second"]:
        assert set(row["rates"]) == {"numba", "tensorflow", "NumPy products", "TensorFlow products"}
        assert all(len(rate["rounds"]) == 2 and rate["median"] > 0 for rate in row["rates"].values())
        bound = max(row["rates"][name]["median"] for name in bench_chains.BOUNDS)
        assert row["times_bound"] == row["rates"]["numba"]["median"] / bound
    judged = {line["line"]: line["reached"] for line in figures["lines"]}
    assert judged["AIS, 100 chains x 15,000 temperatures, s"] is None
    assert sum(reached is not None for reached in judged.values()) == 4
    assert "| 64" in bench_chains.describe(figures)


def test_the_stand_in_model_is_about_as_dense_as_digits() -> None:
    params = bench_chains.synthetic_params()
    engine = get_engine("numba")
    on = bench_chains._burnt_in(engine, engine.prepare(params), params, 8).mean()
    assert 0.05 < on < 0.4


def test_the_dense_bound_neither_overflows_nor_fades(small: RBMParams) -> None:
    weights = bench_chains._bounded_weights(small._replace(weights=1e20 * small.weights))
    visible = np.ones((2, 20), np.float32)
    for _ in range(1000):
        visible = (visible @ weights) @ weights.T
    assert 1e-6 < np.abs(visible).max() < 1e3


def test_train_bench_runs_with_peers_or_without_them() -> None:
    pytest.importorskip("sklearn")
    setting = bench_train.Setting("PCD-1", 10, 10, 1, ("scikit-learn",), 2.0, 5.0)
    options = bench_train.Options(num_hidden=8, rounds=1, seconds=0.001, peers=True, settings=(setting,))
    figures = bench_train.run(bench_train.synthetic_images(50, 30), "synthetic", options)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    race = figures["races"][0]
    assert race["times_peers"] == race["rates"]["rbm"]["median"] / race["rates"]["scikit-learn"]["median"]
    assert figures["lines"][0]["reached"] == (race["times_peers"] >= 2.0)
    assert "PCD-1 (batch 10, 10 chains)" in bench_train.describe(figures)


def test_service_figures_become_lines_and_a_table() -> None:
    quantiles = {"p50": 5.0, "p95": 6.0, "p99": 7.0}
    nothing: dict[str, float | None] = dict.fromkeys(quantiles)
    figures: dict[str, Any] = {
        "path": bench_service.PATH,
        "computer": bench.computer(),
        "raw_chain_steps_per_second": 100_000.0,
        "kernel_ms": 3.0,
        "idle_ms": quantiles,
        "capacity_per_second": 170.0,
        "clients": 32,
        "share_of_raw": 0.85,
        "share_of_raw_8_chains": 0.95,
        "memory_mb": {"before": 100.0, "after": 120.0, "peak": 130.0},
        "loads": [
            {
                "times": 2.0, "offered_per_second": 340.0, "goodput_per_second": 160.0, "goodput_share": 0.94,
                "accepted_ms": quantiles, "refused_ms": nothing, "unanswered": 0, "memory_mb": 130.0,
            }
        ],
        "mixed": {"alone_ms": quantiles, "beside_ms": quantiles, "ratio": 1.0, "requests_per_second": 80.0},
    }  # fmt: skip
    figures["lines"] = bench_service.lines(figures)
    judged = {line["line"]: line for line in figures["lines"]}
    assert judged["idle /sample?steps=500, median, ms above the kernel"]["value"] == 2.0
    assert judged["memory at its peak, MB more than idle"]["value"] == 30.0
    assert judged["refusals at 2 times capacity, p99 ms"]["reached"] is None
    assert all(line["reached"] is not False for line in judged.values())
    assert "| 2 x" in bench_service.describe(figures)


@pytest.mark.slow
def test_service_bench_of_a_real_process(small: RBMParams, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_core.model_store import publish

    publish(tmp_path, "mnist", small, image_shape=(4, 5), manifest={})
    options: dict[str, Any] = {"seconds": 0.3, "loads": (0.5, 2.0), "clients": (2, 4)}
    figures, text = cli_bench._service(options, None, tmp_path, None)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["capacity_per_second"] > 0 and figures["memory_mb"]["peak"] > 10
    assert all(load["other_status"] == [] for load in figures["loads"])
    assert "capacity" in text


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBM_HOST", "0.0.0.0")  # without a key
    with pytest.raises(bench_process.ServerError, match="Refusing to listen"), bench_process.started(tmp_path):
        raise AssertionError("it started")


def test_a_stand_in_only_where_no_model_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBM_CHECKPOINTS", str(tmp_path))
    params, name = cli_bench._model_params(None, None)
    assert params.num_visible == 784 and "synthetic" in name
    with pytest.raises(CliError, match="no model"):
        cli_bench._model_params(None, "absent")
