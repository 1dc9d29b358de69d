"""Finds the drawing on a page and redraws it as MNIST's authors did: a digit 20 pixels long in a field of 28, centred
by mass (LeCun et al. 1998, "Gradient-based learning applied to document recognition", section III-A)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from service.morphology import box_mean, closing, components, dilate, erode

MIN_CONTRAST = 0.06  # of full scale; fainter marks are noise
MIN_PEAK_TO_NOISE = 6.0
COARSE_SIDE = 96  # cells, where background and parts are looked for
FINE = 8  # samples a model pixel, where stroke width is adjusted
THINNEST, THICKEST = 2.0, 4.0  # stroke width in pixels of a 20-pixel digit, outside of which it is brought back
CLOSE_TO_THIN, CLOSE_TO_THICK = 2.5, 3.6


class Drawing(NamedTuple):
    """A drawing as the model wants it."""

    pixels: np.ndarray  # float32 [height, width], 0..1, white on black
    dark_ink: bool


def looks_like_training_digit(page: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether a page is what the model was trained on: its size, white on black, and (28x28) fitted and centred."""
    if page.shape != tuple(shape):
        return False
    border = np.concatenate([page[0], page[-1], page[:, 0], page[:, -1]])
    peak, mass = float(page.max()), float(page.sum())
    if peak < 0.5 or np.median(border) > 0.05 or mass > 0.5 * page.size:
        return False
    if tuple(shape) != (28, 28):
        return True
    length = max(np.ptp(positions) + 1 for positions in np.nonzero(page > 0.02))
    centre = [float((page.sum(axis=1 - axis) * np.arange(28)).sum()) / mass for axis in (0, 1)]
    return peak > 0.9 and bool(19 <= length <= 22) and max(abs(position - 13.9) for position in centre) < 1.2


def fit_drawing(page: np.ndarray, shape: tuple[int, int], dark_ink: bool | None = None) -> Drawing | None:
    """The drawing on a page: background flattened, specks dropped, cropped, fitted, strokes evened, centred by mass.

    Args:
      page: float32 [rows, columns] in 0..1.
      shape: (height, width) of the result; the drawing is fitted into 5/7 of it.
      dark_ink: None finds out.

    Returns:
      None if nothing stands out from the background.
    """
    if dark_ink is None:
        dark_ink = is_dark_ink(page)
    ink = flat_ink(1 - page if not dark_ink else page, multiplicative=dark_ink)
    cropped = _cropped_drawing(ink)
    if cropped is None:
        return None
    box = (round(shape[0] * 5 / 7), round(shape[1] * 5 / 7))
    return Drawing(_placed(_fitted(cropped, box), shape), bool(dark_ink))


def even_drawing(page: np.ndarray, shape: tuple[int, int], dark_ink: bool | None = None) -> Drawing:
    """The page shrunk to `shape`, with its ink as in `fit_drawing`; but nothing is moved, cropped or dropped."""
    if dark_ink is None:
        dark_ink = is_dark_ink(page)
    ink = flat_ink(1 - page if not dark_ink else page, multiplicative=dark_ink)
    smooth, noise, peak = _ink_levels(ink)
    if not _stands_out(peak, noise):
        return Drawing(np.zeros(shape, np.float32), bool(dark_ink))
    strong = ink[smooth > _floor(peak, noise)]
    fine = _scaled(_stretched(ink, strong, peak, noise), (shape[0] * FINE, shape[1] * FINE))
    return Drawing(_scaled(_evened(fine, max(shape) * 5 / 7), shape), bool(dark_ink))


def is_dark_ink(page: np.ndarray) -> bool:
    """Polarity, by the border: is its tone nearer to the lightest of the page than to its darkest?

    Where the border is not of one tone even after evening out the light (a shadow, the edge of a table), the narrowest
    clear marks decide: are they darker or lighter than what lies beside them?
    """
    small = _shrunk(page, COARSE_SIDE)
    for even in (small, _without_slope(small)):
        rim = max(1, min(even.shape) // 16)
        border = np.concatenate([part.ravel() for part in (even[:rim], even[-rim:], even[:, :rim], even[:, -rim:])])
        low, background, high = np.quantile(border, (0.1, 0.5, 0.9))
        below, above = float(background - even.min()), float(even.max() - background)
        if high - low < 0.25 * (below + above) and max(below, above) > 1.5 * min(below, above):
            return below > above
    dark, light = _narrow_marks(small)
    return 1.4 * dark >= light  # most pages are paper


def _narrow_marks(small: np.ndarray) -> tuple[float, float]:
    """How dark and how light the narrow marks of a page are, at the smallest width where the two differ clearly."""
    widths = sorted({2, 4, 7, _paper_radius(small)} if min(small.shape) > 40 else {_paper_radius(small)})
    marks = [(_top(closing(small, radius) - small), _top(small + closing(-small, radius))) for radius in widths]
    clear = 0.4 * max(marks[-1])
    for dark, light in marks:
        if max(dark, light) > clear and max(dark, light) > 1.4 * min(dark, light):
            return dark, light
    return marks[-1]


def _without_slope(small: np.ndarray) -> np.ndarray:
    """Differences from a quadratic surface, fitted three times with ever less say for what stands out (the ink)."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, length) for length in small.shape), indexing="ij")
    terms = np.stack([np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2], axis=-1).reshape(-1, 6)
    values = small.ravel().astype(np.float64)
    residual = values - np.median(values)
    for _ in range(3):
        weights = 1 / (1 + (residual / (0.02 + 1.5 * np.median(np.abs(residual)))) ** 2)
        weighted = terms * weights[:, None]
        surface = np.linalg.lstsq(weighted.T @ terms, weighted.T @ values, rcond=None)[0]
        residual = values - terms @ surface
    return residual.reshape(small.shape)


def _top(differences: np.ndarray) -> float:
    """The largest but for a few grains of noise."""
    return float(np.quantile(differences, 0.9995))


def _paper_radius(small: np.ndarray) -> int:
    """Half the width under which a thing is drawn on the paper rather than a change of the paper itself."""
    return max(2, round(min(small.shape) / 6))


def flat_ink(page: np.ndarray, *, multiplicative: bool) -> np.ndarray:
    """How much darker each pixel is than the paper around it, 0..1, whatever light and shadow do.

    The paper is a grey closing of the shrunk page: what is narrower than a third of it and darker is ink.
    """
    small = _shrunk(page, COARSE_SIDE)
    paper = closing(small, _paper_radius(small))
    paper = box_mean(paper, max(1, max(small.shape) // 48)) if min(small.shape) > 40 else paper
    if paper.shape != page.shape:
        paper = np.asarray(Image.fromarray(paper).resize(page.shape[::-1], Image.Resampling.BILINEAR))
    ink = 1 - page / np.maximum(paper, 0.05) if multiplicative else paper - page
    return np.clip(ink, 0, 1).astype(np.float32)


def _cropped_drawing(ink: np.ndarray) -> np.ndarray | None:
    """The part of the page that holds the drawing, its ink stretched to 0..1; None if there is none."""
    smooth, noise, peak = _ink_levels(ink)
    if not _stands_out(peak, noise):
        return None
    floor = _floor(peak, noise)
    kept = _parts_of_drawing(smooth, floor)
    if kept is None:
        return None
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    drawing, kept = np.where(kept, ink, 0)[window], kept[window]
    return _stretched(drawing, drawing[(smooth[window] > floor) & kept], peak, noise)


def _ink_levels(ink: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The ink without its grain, the level of the noise on bare paper, and that of the strokes."""
    smooth = box_mean(ink, 1) if min(ink.shape) >= 64 else ink
    noise = 2.5 * float(np.quantile(smooth, 0.25)) + 1e-3  # a quarter of any page is bare
    return smooth, noise, _peak(smooth)


def _stands_out(peak: float, noise: float) -> bool:
    return peak >= max(MIN_CONTRAST, MIN_PEAK_TO_NOISE * noise)


def _floor(peak: float, noise: float) -> float:
    """Above it is a stroke."""
    return max(0.4 * peak, 4 * noise)


def _stretched(ink: np.ndarray, strong: np.ndarray, peak: float, noise: float) -> np.ndarray:
    """Ink as 0..1: paper is 0, and most of what is `strong` 1."""
    low, high = max(0.2 * peak, 2 * noise), float(np.quantile(strong, 0.7))
    return np.clip((ink - low) / max(high - low, 1e-3), 0, 1)


def _peak(smooth: np.ndarray) -> float:
    """A stroke's ink: that of the darkest few coarse cells, so that a grain of dust does not set it."""
    flat = smooth.ravel()
    count = int(np.clip(flat.size // 2000, 4, 400))
    return float(np.median(np.partition(flat, flat.size - count)[-count:])) if flat.size > count else float(flat.max())


def _parts_of_drawing(smooth: np.ndarray, floor: float) -> np.ndarray | None:
    """Mask of the page's pixels that belong to the drawing: the heaviest connected part and those that go with it."""
    cell = -(-max(smooth.shape) // COARSE_SIDE)
    padded = np.pad(smooth, [(0, -length % cell) for length in smooth.shape])
    cells = padded.reshape(padded.shape[0] // cell, cell, -1, cell)
    strong = np.where(cells > floor, cells, 0)
    labels, count = components(strong.max(axis=(1, 3)) > 0)
    if count == 0:
        return None
    masses = np.bincount(labels.ravel(), weights=strong.sum(axis=(1, 3)).ravel(), minlength=count + 1)[1:]
    chosen = _chosen_parts(labels, masses)
    near = dilate(np.isin(labels, chosen).astype(np.float32), 1) > 0 if cell > 1 else np.isin(labels, chosen)
    # A soft edge of one pixel belongs to the stroke even where it falls under the floor.
    mask = np.kron(near, np.ones((cell, cell), bool))[: smooth.shape[0], : smooth.shape[1]]
    grown = dilate((mask & (smooth > floor)).astype(np.float32), 1) > 0
    return grown if grown.any() else None


def _chosen_parts(labels: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Labels of the parts to keep. Things that run along the edge (a table, a finger's shadow) count little."""
    boxes = [_box(labels == label) for label in range(1, len(masses) + 1)]
    limits = np.array([0, labels.shape[0] - 1, 0, labels.shape[1] - 1])
    touching = np.array([(np.array(box) == limits).any() for box in boxes])
    scores = masses * np.where(touching, 0.15, 1.0)
    main = int(np.argmax(scores))
    top, bottom, left, right = boxes[main]
    reach = 0.5 * max(bottom - top, right - left) + 2
    keep = [main + 1]
    for part, (first, last, start, end) in enumerate(boxes):
        gap = max(first - bottom, top - last, start - right, left - end)
        if part != main and touching[part] <= touching[main] and scores[part] > 0.06 * scores[main] and gap <= reach:
            keep.append(part + 1)
    return np.array(keep)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _fitted(drawing: np.ndarray, box: tuple[int, int]) -> np.ndarray:
    """A drawing in `box` (height, width), its shape kept, its strokes about as wide as the training images'."""
    fine = _evened(np.pad(_resized_to(drawing, (box[0] * FINE, box[1] * FINE)), 2 * FINE), max(box))
    top, bottom, left, right = _box(fine > 0.3 * fine.max())
    return _resized_to(fine[top : bottom + 1, left : right + 1], box)


def _evened(fine: np.ndarray, length: float) -> np.ndarray:
    """Strokes about as wide as the training images', in `FINE` samples a pixel, for digits `length` pixels long."""
    width = stroke_width(fine) / FINE * 20 / length
    if width < THINNEST:
        return dilate(fine, round((CLOSE_TO_THIN - width) * FINE / 2 * length / 20))
    if width > THICKEST:
        thinner = erode(fine, round((width - CLOSE_TO_THICK) * FINE / 2 * length / 20))
        return thinner if thinner.sum() > 0.3 * fine.sum() else fine
    return fine


def stroke_width(drawing: np.ndarray) -> float:
    """Mean width of the strokes in pixels: their area is width times length, their total variation twice the length."""
    slopes = np.hypot(np.diff(drawing, axis=0)[:, :-1], np.diff(drawing, axis=1)[:-1])
    return 2 * float(drawing.sum()) / max(float(slopes.sum()), 1e-6)


def _placed(digit: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A fitted digit in the middle of an empty field: its centre of mass at half the height and half the width."""
    digit = digit / max(float(digit.max()), 1e-6)
    mass = float(digit.sum())
    corner = []
    for axis in (0, 1):
        centre = float((digit.sum(axis=1 - axis) * np.arange(digit.shape[axis])).sum()) / mass
        corner.append(int(np.clip(round(shape[axis] / 2 - centre), 0, shape[axis] - digit.shape[axis])))
    field = np.zeros(shape, np.float32)
    field[corner[0] : corner[0] + digit.shape[0], corner[1] : corner[1] + digit.shape[1]] = digit
    return field


def _resized_to(drawing: np.ndarray, box: tuple[int, int]) -> np.ndarray:
    """`drawing` as large as fits `box` (height, width) with its shape kept; shrinking averages areas."""
    ratio = min(box[0] / drawing.shape[0], box[1] / drawing.shape[1])
    height, width = (max(1, round(length * ratio)) for length in drawing.shape)
    return _scaled(drawing, (height, width))


def _scaled(drawing: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`drawing` in `shape`; shrinking averages areas."""
    shrinks = min(shape[0] / drawing.shape[0], shape[1] / drawing.shape[1]) < 0.5
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    picture = Image.fromarray(np.ascontiguousarray(drawing, np.float32))
    return np.clip(np.asarray(picture.resize(shape[::-1], kind)), 0, 1)


def _shrunk(page: np.ndarray, side: int) -> np.ndarray:
    factor = -(-max(page.shape) // side)
    return np.asarray(Image.fromarray(page).reduce(factor)) if factor > 1 else page
