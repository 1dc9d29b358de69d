"""The evaluation report is one page that needs nothing else, and holds what it promises."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from model_core import cli_report, tempering
from model_core.cli_evaluate import Judged, collect_figures
from model_core.evaluation import measure_log_z
from model_core.model_store import Model
from model_core.rbm import checked_params
from model_core.report import Section, render_page


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempering, "_START_STEPS", 20)
    for name, value in {"_ROUNDS": 6, "_LADDERS": 10, "_NOISE_STEPS": 5, "_CHANGE_TIMES": 3, "_SHOWN": 10}.items():
        monkeypatch.setattr(cli_report, name, value)


class Addresses(HTMLParser):
    """Collects everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_page_is_self_contained_and_escapes_words() -> None:
    page = render_page("a < b", [Section("c & d", "e", [("f", "<g>")], [("h", Figure())], ["<i>"])])
    parser = Addresses()
    parser.feed(page)
    assert len(parser.found) == 1
    assert all(address.startswith("data:image/png;base64,") for address in parser.found)
    assert "a &lt; b" in page and "c &amp; d" in page and "&lt;g&gt;" in page and "<i>" not in page
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("labelled", [True, False])
def test_report_has_every_part(quick: None, labelled: bool) -> None:
    rng = np.random.default_rng(1)
    params = checked_params(rng.normal(size=(16, 5)), rng.normal(size=16), rng.normal(size=5))
    images = (rng.random((120, 16)) < 0.4).astype(np.uint8)
    labels = np.arange(120) % 3 if labelled else None
    judged = Judged(images, images, images.mean(axis=0), images, images, labels, labels)
    model = Model(params, {"name": "small", "version": 7}, (4, 4))
    base = np.zeros(16, np.float32)
    figures = collect_figures(model, judged, measure_log_z(params, base, num_chains=8, num_betas=20), num_betas=20)
    page = cli_report.build_report(model, judged, base, figures, seed=0)
    titles = re.findall("<h2>(.*?)</h2>", page)
    classes = ["Features", "Classes"] if labelled else []
    assert titles == ["Log-likelihood", "Samples", "Nearest training images", *classes, "Hidden units"]
    assert "small, version 7" in page
