"""What schemathesis cannot guess: bodies that are images or NPY arrays. Loaded by `test_openapi_fuzz`."""

from __future__ import annotations

from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from schemathesis import HookContext

from tests.service.http_helpers import image_bytes, npy_bytes

_ARRAYS: list[np.ndarray] = [np.zeros((1, 784), np.uint8), np.ones((3, 28, 28), np.float32), np.full((2, 784), 0.5)]
for kind in ("png", "jpeg", "webp", "gif", "bmp"):
    schemathesis.openapi.media_type(f"image/{kind}", st.just(image_bytes(kind.upper())))
schemathesis.openapi.media_type("application/x-npy", st.sampled_from([npy_bytes(array) for array in _ARRAYS]))


@schemathesis.hook
def filter_query(context: HookContext, query: dict[str, Any] | None) -> bool:
    """No equilibrium samples: the tiny model has no ladder, which the schema cannot say."""
    return not query or query.get("method") != "equilibrium"
