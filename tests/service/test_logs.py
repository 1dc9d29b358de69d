"""The log of requests: written together, yet each line has its own time and id, and nobody's text can forge one."""

from __future__ import annotations

import errno
import io
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import logs
from service.logs import Answered, Gathering, flush_logs, log_request, set_up_logs
from tests.service.http_helpers import serving, wait_until

FLAGS = (
    "_srcfile",
    "logThreads",
    "logProcesses",
    "logMultiprocessing",
)  # of the logging module, which `logs` turns off
Written = Callable[[], list[str]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """The lines that a server would have written to stderr; this process gets its logs back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    flags = {name: getattr(logging, name) for name in FLAGS}
    yield lambda: capsys.readouterr().err.splitlines()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for name, flag in flags.items():
        setattr(logging, name, flag)


def answered(path: str = "/sample", status: int = 200, *, age: float = 0.0, level: int = logging.INFO) -> Answered:
    return Answered(time.time() - age, level, f"id{status}", "GET", path, status, 0.0123)


def test_lines_wait_and_keep_their_order_times_and_ids(written: Written) -> None:
    set_up_logs("json", "info")
    for status, age in ((200, 7200.0), (404, 3600.0)):
        log_request(answered(status=status, age=age))
    assert written() == []
    flush_logs()
    first, second = map(json.loads, written())
    assert (first["request_id"], first["status"], first["seconds"]) == ("id200", 200, 0.0123)
    assert (second["request_id"], second["status"]) == ("id404", 404)
    hours = [int(entry["time"][11:13]) for entry in (first, second)]
    assert hours == [time.gmtime(time.time() - age).tm_hour for age in (7200.0, 3600.0)]


def test_a_line_break_in_a_path_forges_no_line(written: Written) -> None:
    set_up_logs("console", "info")
    log_request(answered("/x\n12:00:00 info    id GET '/admin' 200"))
    flush_logs()
    (line,) = written()
    assert " id200 GET " in line


def test_a_level_that_is_off_is_left_out(written: Written) -> None:
    set_up_logs("console", "info")
    log_request(answered("/healthz", level=logging.DEBUG))
    flush_logs()
    assert written() == []


def test_a_crowd_of_lines_does_not_wait_for_the_clock(written: Written) -> None:
    set_up_logs("console", "info")
    for _ in range(2500):
        log_request(answered())
    assert len(written()) >= 1500
    flush_logs()
    assert len(written()) >= 1


def test_any_other_line_comes_after_those_that_wait(written: Written) -> None:
    set_up_logs("console", "info")
    log_request(answered())
    logging.getLogger("rbm.other").info("something else")
    first, second = written()
    assert "id200" in first and "something else" in second


def test_when_the_clock_has_stopped_nothing_waits(written: Written) -> None:
    set_up_logs("console", "info")
    log_request(answered())
    flush_logs(gather=False)
    log_request(answered(status=503))
    assert ["id200" in line for line in written()] == [True, False]


def test_a_second_signal_in_the_middle_of_a_flush_loses_no_line(written: Written) -> None:
    set_up_logs("console", "info")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, Gathering)
    put_down, num_formatted = handler.format, 0

    def interrupted(record: logging.LogRecord) -> str:
        nonlocal num_formatted
        num_formatted += 1
        if num_formatted == 50:
            flush_logs()  # what the signal's handler does before it ends the process
            raise SystemExit
        return put_down(record)

    handler.format = interrupted  # type: ignore[method-assign]
    for status in range(100, 200):
        log_request(answered(status=status))
    with pytest.raises(SystemExit):
        flush_logs()
    assert {line.split()[2] for line in written()} == {f"id{status}" for status in range(100, 200)}


def test_under_another_server_lines_go_out_at_once(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logs.REQUESTS):
        client.get("/sample?steps=1&scale=1", headers={"X-Request-ID": "mine"})
    (record,) = caplog.records
    assert record.getMessage().startswith("GET '/sample' 200") and record.__dict__["request_id"] == "mine"


class FullDisk(io.StringIO):
    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_log_that_cannot_be_written_stops_nobody(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk()
    monkeypatch.setattr("sys.stderr", disk)
    set_up_logs("json", "info")
    log_request(answered())
    flush_logs()
    logging.getLogger("rbm").warning("words")
    assert disk.getvalue() == ""
    disk.is_full = False
    log_request(answered(status=404))
    flush_logs()
    (line,) = disk.getvalue().splitlines()
    assert json.loads(line)["status"] == 404
    disk.close()
    logging.getLogger("rbm").warning("words")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_server_whose_log_is_full_serves_and_ends_well(store: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    before = f"""
import os, threading, time
def fill():
    while not os.path.exists({str(full)!r}):
        time.sleep(0.01)
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    os.rename({str(full)!r}, {str(full)!r} + ".done")
threading.Thread(target=fill, daemon=True).start()
"""
    with serving(store, before, RBM_DRAIN_DELAY="0") as server:
        full.touch()
        wait_until((tmp_path / "full.done").exists)
        for _ in range(3):
            assert b" 200 " in server.get("/sample?steps=1")[:20]
            time.sleep(0.15)  # the log is written ten times a second
        size = server.log.stat().st_size
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        assert server.log.stat().st_size == size
        assert server.process.returncode in (0, 120)  # 120: Python itself could not write its last buffer
