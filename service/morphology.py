"""Small filters on grey pictures, float32 [rows, columns]: growing, shrinking, averaging, connected parts."""

from __future__ import annotations

import numpy as np


def dilate(picture: np.ndarray, radius: int) -> np.ndarray:
    """Each pixel becomes the lightest within `radius`, in a shape near a disc (squares and crosses in turn)."""
    for step in range(radius):
        vertical = _largest_of_three(picture, 0)
        horizontal = _largest_of_three(vertical if step % 2 else picture, 1)
        picture = horizontal if step % 2 else np.maximum(vertical, horizontal)
    return picture


def erode(picture: np.ndarray, radius: int) -> np.ndarray:
    """Each pixel becomes the darkest within `radius`."""
    return -dilate(-picture, radius)


def closing(picture: np.ndarray, radius: int) -> np.ndarray:
    """Removes what is darker than its surroundings and narrower than twice `radius`, and keeps all edges else."""
    # Shapes wider than the picture are cut, not mirrored: a stroke that leaves the picture stays ink.
    padded = np.pad(picture, radius, mode="edge")
    return erode(dilate(padded, radius), radius)[radius:-radius, radius:-radius]


def box_mean(picture: np.ndarray, radius: int) -> np.ndarray:
    """Means over squares of 2 radius + 1 pixels a side; the edge is repeated outwards."""
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (radius, radius)
        padded = np.pad(picture, padding, mode="edge")
        length = picture.shape[axis]
        total = np.zeros_like(picture)
        for start in range(2 * radius + 1):
            total += padded[start : start + length] if axis == 0 else padded[:, start : start + length]
        picture = total / np.float32(2 * radius + 1)
    return picture


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected parts of a small mask (8 neighbours): labels int [rows, columns] from 1, else 0; their number."""
    parents: list[int] = []
    runs: list[tuple[int, int, int]] = []  # row, first column, one past the last
    previous: list[int] = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0))
        current = []
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            run = len(runs)
            runs.append((row, start, end))
            parents.append(run)
            current.append(run)
            for above in previous:
                if runs[above][1] <= end and runs[above][2] >= start:
                    parents[_root(parents, above)] = _root(parents, run)
        previous = current
    numbers: dict[int, int] = {}
    labels = np.zeros(mask.shape, np.int32)
    for run, (row, start, end) in enumerate(runs):
        labels[row, start:end] = numbers.setdefault(_root(parents, run), len(numbers) + 1)
    return labels, len(numbers)


def _root(parents: list[int], run: int) -> int:
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


def _largest_of_three(picture: np.ndarray, axis: int) -> np.ndarray:
    result = picture.copy()
    if axis == 0:
        np.maximum(result[1:], picture[:-1], out=result[1:])
        np.maximum(result[:-1], picture[1:], out=result[:-1])
    else:
        np.maximum(result[:, 1:], picture[:, :-1], out=result[:, 1:])
        np.maximum(result[:, :-1], picture[:, 1:], out=result[:, :-1])
    return result
