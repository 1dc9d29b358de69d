"""Which format an answer takes: `format=` if given, else the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from service.errors import Problem

MEDIA_TYPES = {
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "apng": "image/apng",
    "json": "application/json",
    "npy": "application/x-npy",
    "csv": "text/csv",
    "sse": "text/event-stream",
}
ANIMATED = ("gif", "apng")  # asking for these is asking for frames


@lru_cache(maxsize=64)
def choose_format(requested: str | None, accept: str | None, offered: tuple[str, ...]) -> str:
    """The format to answer in, one of `offered`, which lists the server's favourites first.

    Among formats that the client likes equally the server's order decides: a browser that takes any image gets a PNG.

    Raises:
      Problem: 406, naming the formats of the route.
    """
    if requested is not None:
        if requested in offered:
            return requested
        raise _not_acceptable(f"format={requested} is not one that this route makes", offered)
    ranges = parse_accept(accept) if accept and accept.strip() else [("*/*", 1.0)]
    qualities = {name: quality(MEDIA_TYPES[name], ranges) for name in offered}
    best = max(offered, key=lambda name: qualities[name])  # max keeps the first of equals
    if qualities[best] <= 0:
        raise _not_acceptable("The Accept header allows none of the formats that this route makes", offered)
    return best


def _not_acceptable(reason: str, offered: Sequence[str]) -> Problem:
    listed = ", ".join(f"{name} ({MEDIA_TYPES[name]})" for name in offered)
    return Problem(406, f"{reason}. Choose among {listed}, by `format=` or by Accept.", headers={"Vary": "Accept"})


def parse_accept(accept: str) -> list[tuple[str, float]]:
    """Media ranges with their quality; what cannot be read is left out."""
    ranges = []
    for item in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = min(1.0, max(0.0, float(value)))
                except ValueError:
                    weight = 0.0
        if media_range.count("/") == 1:
            ranges.append((media_range, weight))
    return ranges


def quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """How much a client wants `media_type`, 0..1: its most specific range decides."""
    family = media_type.split("/")[0]
    for pattern in (media_type, f"{family}/*", "*/*"):
        weights = [weight for media_range, weight in ranges if media_range == pattern]
        if weights:
            return max(weights)
    return 0.0
