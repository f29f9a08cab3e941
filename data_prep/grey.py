"""Deep pixels (10 to 16 bits, or windowed numbers) as 8-bit grey that shows the film: not black for one hot pixel, a burnt-in
marker or a border of padding."""

from __future__ import annotations

import numpy as np

ROWS = 256  # worked on at a time: what they take stays in the processor's cache
_SAMPLE = 200_000  # pixels that decide the range
_FLAT_DEVIATION, _FLAT_RANGE = 2.0, 6.0  # of 255; below, nothing is seen (films have a deviation of 30 to 80)


def shrink(pixels: np.ndarray, smallest: tuple[int, int], limits: tuple[float, float] | None = None) -> np.ndarray:
    """`pixels` [height, width] averaged over whole blocks, not below `smallest` (width, height): a 15-megapixel film takes
    more time and memory to scale than to decode.

    Args:
        limits: what is below and above counts as the first and the second.

    Returns:
        float32, or `pixels` within the limits where nothing is to be shrunk.
    """
    height, width = pixels.shape
    block = min(width // max(1, smallest[0]), height // max(1, smallest[1]))
    if block < 2:
        return pixels if limits is None else np.clip(pixels, *limits)
    rows, columns = height // block * block, width // block * block
    small = pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2 and block < 256  # their sums fit 32 bits
    integers = np.uint32 if small else np.int64
    shrunk = np.empty((rows // block, columns // block), np.float32)
    strip = max(1, ROWS // block) * block
    for top in range(0, rows, strip):
        part = pixels[top : min(top + strip, rows)]
        if limits is not None:
            part = np.clip(part, *limits)
        # Whole rows first: they lie in memory as they are read, columns do not.
        by_row = part[::block].astype(np.float32 if part.dtype.kind == "f" else integers)
        for row in range(1, block):
            by_row += part[row::block]
        total = by_row[:, 0:columns:block].copy()
        for column in range(1, block):
            total += by_row[:, column:columns:block]
        shrunk[top // block : top // block + len(total)] = total.astype(np.float32) / block**2
    return shrunk


def grey_range(pixels: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float]:
    """What becomes black and white: the smallest and largest value, but for the few that lie far from all others.

    Far: beyond a gap wider than the range of the middle 80%; or, for the outermost 1%, further out than the range of the
    other 98%.

    Args:
        valid: which pixels count (no padding); None: all.

    Raises:
        ValueError: not finite, or one value everywhere.
    """
    step = max(1, int((pixels.size / _SAMPLE) ** 0.5))
    sample = pixels[::step, ::step]
    kept = pixels if valid is None else pixels[valid]
    sample = np.sort((sample if valid is None else sample[valid[::step, ::step]]).ravel().astype(np.float64))
    if not kept.size or not sample.size:
        raise ValueError("no pixel but padding")
    low, high = float(kept.min()), float(kept.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixel values are not finite")
    if low == high:
        raise ValueError(f"one value everywhere ({low:g})")
    if sample[len(sample) // 100] == sample[-1 - len(sample) // 100]:
        raise ValueError(f"one value almost everywhere ({sample[len(sample) // 2]:g})")
    low, high = -_upper(-sample[::-1], -low), _upper(sample, high)
    return low, high


def _upper(values: np.ndarray, largest: float) -> float:
    """The upper end of the sorted `values` without what lies far; `largest` where nothing does."""
    p1, p10, p90, p99 = (float(values[round(share * (len(values) - 1))]) for share in (0.01, 0.1, 0.9, 0.99))
    tail = np.append(values[np.searchsorted(values, p90) :], largest)
    gaps = np.flatnonzero(np.diff(tail) > max(p90 - p10, 1.0)) if p90 > p10 else np.array([], int)
    if len(gaps):
        return float(tail[gaps[0]])
    if p99 > p1 and largest - p99 > p99 - p1:
        return min(largest, p99 + (p99 - p1) / 4)
    return largest


def to_8_bits(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 of `pixels`: `low` and below 0, `high` and above 255."""
    scaled = (pixels.astype(np.float32) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def scale_to_8_bits(pixels: np.ndarray, smallest: tuple[int, int] = (1 << 30, 1 << 30)) -> np.ndarray:
    """uint8 of any 2-D array by its `grey_range`, shrunk as `shrink` does (which happens after the range is found).

    Raises:
        ValueError: not 2-D, not finite, or one value everywhere.
    """
    if pixels.ndim != 2:
        raise ValueError(f"expected one grey plane, found an array of shape {pixels.shape}")
    low, high = grey_range(pixels)
    limits = (low, high) if high - low < np.ptp(pixels) else None
    return to_8_bits(shrink(pixels, smallest, limits), low, high)


def figures(grey: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (of 255), one decimal each.

    Raises:
        ValueError: almost no contrast: nothing would be seen.
    """
    mean, deviation = round(float(grey.mean()), 1), round(float(grey.std()), 1)
    p1, p99 = np.percentile(grey, (1, 99))
    if deviation < _FLAT_DEVIATION or p99 - p1 < _FLAT_RANGE:
        raise ValueError(f"almost no contrast (mean {mean:g}, standard deviation {deviation:g} of 255)")
    return mean, deviation
