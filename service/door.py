"""Turns away at the door what would only make everybody slow: a full house answers in microseconds.

A refusal that goes through the framework costs the event loop as much as a good answer does. At several times
capacity the loop would then do little but refuse, everybody would wait for it, and goodput would collapse. So while
`room` requests are under way already, a plain `GET /sample` is refused by its raw bytes, before any parser. All
else goes its usual way, to admission (`admission`), which refuses by cost.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable

from service.below import Headers, header_lines
from service.errors import CONTENT_TYPE, busy, new_request_id, problem_body
from service.logs import REQUESTS
from service.middleware import SECURITY_HEADERS

logger = logging.getLogger(REQUESTS)
_PLAIN = re.compile(rb"GET (/sample)(?:\?[^ \r\n]*)? HTTP/1\.1\r\n")
# A body, or something about the connection: the parser's affair.
_SPECIAL = re.compile(rb"\r\n(?:content-length|transfer-encoding|expect|upgrade):|\r\nconnection:[^\r]*close", re.I)
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,64})[ \t]*\r\n", re.I)
_HEADERS = {**SECURITY_HEADERS, "Content-Type": CONTENT_TYPE, "Cache-Control": "no-store", "Retry-After": "1"}
_HEAD_TEXT = "HTTP/1.1 429 Too Many Requests\r\n" + "".join(
    f"{name.lower()}: {value}\r\n" for name, value in _HEADERS.items()
)
_HEAD = _HEAD_TEXT.encode()
_ID = "\0"  # where the request's id stands in the body that all refusals share


class Door:
    """Counts the requests under way. Touched on the event loop only.

    Args:
      room: how many may be under way before plain requests for chains are refused.
      observe: told of each refusal, for metrics.
    """

    def __init__(self, room: int, observe: Callable[[], None]) -> None:
        self.room, self.num_inside = room, 0
        self._observe = observe
        self._num_untold = 0
        problem = busy(429, f"{room} requests are under way, which is the limit.", 1.0)
        self._before_id, self._after_id = json.dumps(problem_body(problem, _ID, "/sample")).split(json.dumps(_ID)[1:-1])

    def refusal(self, data: bytes, date: Headers = ()) -> bytes | None:
        """The whole answer to the bytes of one whole plain request if the house is full, else None.

        Args:
          date: headers that every answer of the server has.
        """
        if self.num_inside < self.room or not _PLAIN.match(data) or data.find(b"\r\n\r\n") != len(data) - 4:
            return None
        if _SPECIAL.search(data):
            return None
        given = _REQUEST_ID.search(data)
        request_id = given[1].decode() if given else new_request_id()
        body = f"{self._before_id}{request_id}{self._after_id}"
        self._observe()
        self._num_untold += 1
        own = f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        return _HEAD + header_lines(date) + own.encode()

    def tell(self) -> None:
        """Logs the refusals since the last time; the server calls it once a second, for a line each would be dear."""
        if self._num_untold:
            logger.warning("%d requests refused at the door: %d are under way", self._num_untold, self.num_inside)
            self._num_untold = 0
