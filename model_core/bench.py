"""What all benches share: how time is taken, which computer it was, and how a table is set.

Every contestant is timed in turn, round after round, and the medians over the rounds are compared: a computer that
grows slow for a while (heat, a neighbour) slows all of them, not the unlucky one.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 3  # of the JSON; it grows when a field changes its meaning
_PACKAGES = ("rbm-dream", "numpy", "numba", "tensorflow", "torch", "scikit-learn", "rbms", "fastapi", "uvicorn")
_SETTLE_SECONDS = 0.02  # between contestants: the idle threads of a library spin for a while before they sleep

Work = Callable[[int], None]  # does so many repetitions of a piece of work


def seconds_of(work: Work, count: int) -> float:
    """How long `work(count)` takes."""
    started = time.perf_counter()
    work(count)
    return time.perf_counter() - started


def calibrate(work: Work, seconds: float) -> int:
    """How many repetitions take about `seconds`; at least 1. Warms up on the way: compilers, caches, threads."""
    work(1)
    count = 1
    while True:
        # The best of three: one stall of the computer must not pass for slow work, or too little would be timed.
        spent = max(1e-9, min(seconds_of(work, count) for _ in range(3)))
        if spent >= seconds / 4:
            return max(1, round(count * seconds / spent))
        count = min(8 * count, max(count + 1, int(count * seconds / (2 * spent))))


def time_in_turn(contestants: Mapping[str, Work], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a repetition of every contestant, one number a round; each timing lasts about `seconds`."""
    counts = {name: calibrate(work, seconds) for name, work in contestants.items()}
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            time.sleep(_SETTLE_SECONDS)
            found[name].append(seconds_of(work, counts[name]) / counts[name])
    return found


def rates(seconds: Mapping[str, Sequence[float]], amount: float) -> dict[str, dict[str, Any]]:
    """Units of work a second where a repetition is `amount` units: the median round, the best, and all of them."""
    return {
        name: {
            "median": amount / statistics.median(rounds),
            "best": amount / min(rounds),
            "rounds": [amount / one for one in rounds],
        }
        for name, rounds in seconds.items()
    }


def ratio(found: Mapping[str, Mapping[str, Any]], name: str, others: Sequence[str]) -> float | None:
    """How many times the median rate of `name` is that of the fastest of `others`; None where nobody is there."""
    present = [found[other]["median"] for other in others if other in found]
    return found[name]["median"] / max(present) if present and name in found else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all do not exceed (nearest rank); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def line(
    name: str, value: float | None, bound: float, aim: float | None = None, *, below: bool = False
) -> dict[str, Any]:
    """A line to reach: whether `value` is at least `bound` (at most, if `below`); None where nothing was measured."""
    reached = None if value is None else (value <= bound if below else value >= bound)
    return {"line": name, "value": value, "bound": bound, "aim": aim, "below": below, "reached": reached}


def computer() -> dict[str, Any]:
    """What ran the bench: processor, cores, load before it began, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), platform.machine())


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; numbers to the right, None as a dash."""
    lines = [list(map(cell, row)) for row in rows]
    widths = [max(len(row[n]) for row in [list(header), *lines]) for n in range(len(header))]
    numeric = [n > 0 for n in range(len(header))]

    def joined(row: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([joined(header), joined(rule), *map(joined, lines)])


def cell(value: Any) -> str:
    """A value for a person: three significant digits, thousands set apart."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def lines_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines to reach, and whether they were."""
    rows = [
        (
            one["line"],
            one["value"],
            f"{'at most' if one['below'] else 'at least'} {cell(float(one['bound']))}",
            one["aim"],
            {True: "reached", False: "MISSED", None: "not measured"}[one["reached"]],
        )
        for one in lines
    ]
    return markdown(("line", "measured", "bound", "aim", ""), rows)


def describe_computer(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    where = f"{found['processor']}, {found['cores']} cores, load before {found['load_before']}"
    return f"{where}; Python {found['python']}, {versions}"
