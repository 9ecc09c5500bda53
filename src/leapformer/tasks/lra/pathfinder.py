"""Pathfinder (Linsley et al. 2018) in Long-Range Arena's form (Tay et al., arXiv 2011.04006).

A grey picture holds two long dashed contours, some short ones and two discs. Label 1: the discs sit
on the two ends of one contour. Label 0: each sits on an end of another.

A contour is a chain of paddles, short strokes, each set off from the last by a gap and turned by a
random angle. The two long contours start near the middle, `seed_distance` apart, and grow in turns.
No paddle comes near another, save the next of its own contour. A picture in which a contour finds
no way on is dropped; thousands are grown at once. In both labels one disc marks where a contour
starts and the other where one ends, and pictures of the two labels are matched by how far the discs
are from each other and from the middle. Only the path from one to the other decides.

`CurveShape()` has the parameters of the release's "hard" pictures of 32 x 32 pixels.
Margins, brightness and turning are those of the public generator. It differs in this:

- it rounds paddles to pixels, ours lie anywhere;
- it has no matching, and the distance alone tells a little;
- it lets the growing tips of the two contours touch, ours keep clear;
- it smooths by Lanczos and stretches each picture to the full range, ours takes a stroke's share
  of a pixel, and white is the same in all pictures.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..source import Example, Source
from .curves import BARREN, FAR, Curves, CurveShape, Points, Rows, grow, scatter

HARD = "curv_contour_length_14"
_SIDE = 32  # of the release's pictures
_POOL = 8192  # pictures among which those of label 1 and 0 are matched, at most
_BIN = 0.5  # pixels by which the discs' distance may differ in a match
_WIDE = 0.04  # sides of the picture by which their distances from its middle may differ


def sample(
    count: int, shape: CurveShape, seed: int, progress: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` pictures, a row of size * size pixels each, and their labels, as many 0 as 1.

    The same seed gives the same pictures. Raises ValueError where the shape leaves no room.
    """
    random = np.random.default_rng(seed)
    place = random.permutation(count)
    images, labels = np.empty((count, shape.size**2), np.uint8), np.empty(count, np.int64)
    done = barren = 0
    with tqdm(total=count, desc="Pathfinder images", unit="image", disable=not progress) as bar:
        while done < count:
            pool = grow(random, shape, min(_POOL, max(256, 2 * (count - done))))
            rows, ends = _match(random, pool)
            rows, ends = rows[: count - done], ends[: count - done]
            barren = 0 if len(rows) else barren + 1
            if barren == BARREN:
                raise ValueError(
                    f"no two discs on one contour are as far apart as on two: {shape} gives the "
                    "label away. Ask for longer contours or a smaller seed_distance"
                )
            here = place[done : done + len(rows)]
            curves = scatter(random, pool.keep(rows))
            images[here] = _draw(curves, ends)
            labels[here] = np.arange(len(rows)) % 2
            done += len(rows)
            bar.update(len(rows))
    return images, labels


def _match(random: np.random.Generator, curves: Curves) -> tuple[Rows, Points]:
    """Pictures of label 0 and 1 in turns, such that in both alike are the discs' distance, their
    distances from the middle, and whether it is the first contour's start that has a disc.

    The rows of `curves` that have a match, and where their two discs are: on the start of a
    contour and on the end of the same (label 1) or of the other (label 0).
    """
    starts, ends = curves.tips()
    row = np.arange(len(starts))
    label, which = row % 2, random.integers(0, 2, len(row))
    discs = np.stack([starts[row, which], ends[row, (which + 1 + label) % 2]], 1)
    apart, off = abs(discs[:, 0] - discs[:, 1]), abs(discs - curves.shape.size / 2 * (1 + 1j))
    parts = [which, apart / _BIN, *(off.T / (_WIDE * curves.shape.size))]
    bins = np.unique(np.stack(parts, 1).astype(np.intp), axis=0, return_inverse=True)[1].ravel()
    orders, keys = [], []
    for value in (0, 1):
        mine = np.flatnonzero(label == value)
        order = mine[np.argsort(bins[mine], kind="stable")]
        rank = np.arange(len(order)) - np.searchsorted(bins[order], bins[order])  # in its bin
        orders.append(order)
        keys.append(bins[order] * len(row) + rank)
    _, zero, one = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    rows = random.permutation(np.stack([orders[0][zero], orders[1][one]], 1)).ravel()
    return rows, discs[rows]


def _draw(curves: Curves, marks: Points) -> NDArray[np.uint8]:
    """Pictures as rows of pixels: a stroke's share of each pixel, brightened to the full range."""
    shape = curves.shape
    half, width = shape.paddle_length / 2, shape.thickness / 2
    canvas = _Canvas(len(marks), shape.size, math.ceil(max(half + width, shape.marker_radius)) + 1)
    for column in range(curves.middle.shape[1]):
        rows = np.flatnonzero(curves.middle[:, column] != FAR)
        dx, dy, place = canvas.around(rows, curves.middle[rows, column], half + width + 0.5)
        heading = curves.heading[rows, column].astype(np.complex64)[:, None, None]
        along = abs(dx * heading.real + dy * heading.imag)
        apart = np.hypot(np.maximum(along - half, 0), dy * heading.real - dx * heading.imag)
        share = np.minimum(apart + 0.5, width) - np.maximum(apart - 0.5, -width)
        bright = shape.contrast if column < 2 * shape.contour_length else 1.0
        canvas.lighten(place, share * (bright / min(1.0, shape.thickness)))
    for column in range(marks.shape[1]):
        rows, radius = np.arange(len(marks)), shape.marker_radius
        dx, dy, place = canvas.around(rows, marks[:, column], radius + 0.5)
        canvas.lighten(place, radius + 0.5 - np.hypot(dx, dy))
    return canvas.pixels()


class _Canvas:
    """Black pictures, to be lightened in a small square each, in many at once."""

    def __init__(self, count: int, size: int, border: int) -> None:
        self.size, self.border, self.side = size, border, size + 2 * border
        self.flat = np.zeros(count * self.side**2, np.float32)

    def around(
        self, rows: Rows, centre: Points, reach: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Rows]:
        """From the centre, one for each of the rows, to the pixels near it, and where those are."""
        square = np.arange(math.ceil(2 * reach) + 1)
        x, y = (
            np.ceil(part - reach - 0.5).astype(np.intp)[:, None] + square
            for part in (centre.real, centre.imag)
        )
        dx = (x + 0.5 - centre.real[:, None]).astype(np.float32)[:, None, :]
        dy = (y + 0.5 - centre.imag[:, None]).astype(np.float32)[:, :, None]
        line = (rows[:, None] * self.side + y + self.border) * self.side
        return dx, dy, line[:, :, None] + (x + self.border)[:, None, :]

    def lighten(self, place: Rows, value: NDArray[np.floating]) -> None:
        self.flat[place] = np.maximum(self.flat[place], value)

    def pixels(self) -> NDArray[np.uint8]:
        inner = slice(self.border, self.border + self.size)
        pictures = self.flat.reshape(-1, self.side, self.side)[:, inner, inner]
        return np.rint(pictures.clip(0, 1) * 255).astype(np.uint8).reshape(-1, self.size**2)


def read(source: Path) -> Source:
    """The "hard" pictures of Long-Range Arena's release of Pathfinder32.

    `source` is the folder `curv_contour_length_14` or one above it, up to `lra_release`. The
    release has no splits: 80 % of its pictures are train, 10 % validation and 10 % test, by the
    hash of the name each is listed under. Labels are in metadata/<n>.npy, which is plain text in
    spite of its name.
    """
    folder = _hard_folder(source)
    listed = _listed(folder)
    order = sorted(listed, key=lambda name: hashlib.blake2b(name.encode()).digest())
    tenth = len(order) // 10
    parts = {
        "train": order[2 * tenth :],
        "validation": order[:tenth],
        "test": order[tenth : 2 * tenth],
    }
    return Source(
        layout="pathfinder32",
        splits={
            split: partial(_pictures, folder, [(name, *listed[name]) for name in names])
            for split, names in parts.items()
        },
        official={"train": 160_000, "validation": 20_000, "test": 20_000},
    )


def _hard_folder(source: Path) -> Path:
    above = ("pathfinder32", "lra_release/pathfinder32", "lra_release/lra_release/pathfinder32")
    places = [source / HARD, *(source / folder / HARD for folder in above)]
    if source.name == HARD:
        places.insert(0, source)
    for folder in places:
        if (folder / "metadata").is_dir() and (folder / "imgs").is_dir():
            return folder
    raise FileNotFoundError(
        f"{source}: no folder {HARD} with metadata and imgs in it. Give the folder pathfinder32 "
        "of Long-Range Arena's release"
    )


def _listed(folder: Path) -> dict[str, tuple[str, int]]:
    """By its name, the place each picture is listed at, as file:line, and its label."""
    files = list((folder / "metadata").glob("*.npy"))
    for file in files:
        if not re.fullmatch("[0-9]+", file.stem):
            raise ValueError(f"{file}: expected a number for a name, such as 12.npy")
    listed: dict[str, tuple[str, int]] = {}
    for file in sorted(files, key=lambda file: (int(file.stem), file.stem)):
        try:
            lines = file.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(
                f"{file}: expected the release's plain text, such as 'imgs/0 sample_0.png 0 1'"
            ) from None
        for number, line in enumerate(lines, 1):
            at, fields = f"{file}:{number}", line.split()
            if len(fields) < 4:
                raise ValueError(
                    f"{at}: expected folder, picture, number and label, such as "
                    f"'imgs/0 sample_0.png 0 1'; found {line!r}"
                )
            name, label = f"{fields[0]}/{fields[1]}", fields[3]
            if not re.fullmatch(r"imgs/\w+/\w+\.png", name, re.ASCII):
                raise ValueError(f"{at}: expected a picture imgs/<n>/<name>.png; found {name!r}")
            if label not in ("0", "1"):
                raise ValueError(f"{at}: expected the label 0 or 1; found {label!r}")
            if name in listed:
                raise ValueError(f"{at}: {name} is already listed at {listed[name][0]}")
            listed[name] = (at, int(label))
    if not listed:
        raise ValueError(f"{folder / 'metadata'}: lists no pictures; expected them in <n>.npy")
    return listed


def _pictures(folder: Path, listed: list[tuple[str, str, int]]) -> Iterator[Example]:
    for name, at, label in listed:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there, but listed at {at}")
        yield (_pixels(file),), label


def _pixels(file: Path) -> bytes:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.size == (_SIDE, _SIDE):
                return image.convert("L").tobytes()
            found = " x ".join(str(side) for side in image.size)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file}: expected a whole PNG picture; {error}") from None
    raise ValueError(f"{file}: expected {_SIDE} x {_SIDE} pixels; found {found}")
