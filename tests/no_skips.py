"""A pytest plugin for CI: a test that was skipped there is a test that failed.

Load it with `-p tests.no_skips`. Only what no computer without the hardware can run may be skipped.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

# Beginnings of reasons: no accelerator here; an optional extra; thousands of files that are not ours to ship.
_MAY_SKIP = ("needs a GPU", "needs ray", "needs a corpus")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = skip_reason(report)
        if not reason.startswith(_MAY_SKIP):
            report.outcome = "failed"
            report.longrepr = f"skipped where nothing may be skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for whole modules (`pytest.importorskip` at the top of a file)."""
    report = yield
    if report.skipped and not skip_reason(report).startswith(_MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"module skipped where nothing may be skipped: {skip_reason(report)}"
    return report


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The text given to `pytest.skip`."""
    place_and_reason = report.longrepr
    text = place_and_reason[2] if isinstance(place_and_reason, tuple) else str(place_and_reason)
    return text.removeprefix("Skipped: ")
