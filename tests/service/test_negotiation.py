"""Which format an answer takes."""

from __future__ import annotations

import pytest

from service.errors import Problem
from service.negotiation import choose_format, parse_accept, quality
from service.schemas import PICTURE_FORMATS, TABLE_FORMATS

CHROME_IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
CHROME_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "png"),
        ("", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        (CHROME_IMG, "png"),  # an <img> gets the default picture
        (CHROME_PAGE, "webp"),  # this header says that it likes WebP better than the rest
        ("image/gif", "gif"),
        ("IMAGE/GIF", "gif"),
        ("application/json;q=0.9, image/webp;q=0.5", "json"),
        ("image/*;q=0.2, application/x-npy;q=0.3", "npy"),
        ("text/event-stream", "sse"),
        ("image/png;q=0, */*", "gif"),  # the most specific range decides
        ("text/csv;charset=utf-8", "csv"),
        ("nonsense, application/json", "json"),
    ],
)
def test_accept_chooses_among_what_a_route_makes(accept: str | None, expected: str) -> None:
    assert choose_format(None, accept, PICTURE_FORMATS) == expected


def test_format_overrides_accept() -> None:
    assert choose_format("npy", "image/png", PICTURE_FORMATS) == "npy"


@pytest.mark.parametrize(
    ("requested", "accept"),
    [("png", None), (None, "text/html"), (None, "image/png"), (None, "*/*;q=0"), (None, "nonsense")],
)
def test_what_a_route_does_not_make_is_406_and_names_what_it_makes(requested: str | None, accept: str | None) -> None:
    with pytest.raises(Problem) as raised:
        choose_format(requested, accept, TABLE_FORMATS)
    assert raised.value.status == 406
    assert all(name in raised.value.detail for name in ("json", "npy", "csv"))


@pytest.mark.parametrize(("text", "weight"), [("a/b;q=2", 1), ("a/b;q=-1", 0), ("a/b;q=x", 0), ("a/b; q=0.25", 0.25)])
def test_qualities_are_kept_in_0_to_1(text: str, weight: float) -> None:
    assert quality("a/b", parse_accept(text)) == weight
