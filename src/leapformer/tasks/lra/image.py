"""Image: what does a picture show, read pixel by pixel? (CIFAR-10 in grey, Krizhevsky 2009.)

Pillow's `convert("L")` makes the grey in all layouts. A batch of the Python version is a pickle,
and to unpickle runs whatever code the file names. It is not unpickled: its opcodes are walked by a
machine that knows plain values and the few names of which a numpy array is made, and calls nothing.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import SPLITS, Layout, entries, files, recognise
from ..source import Example, Source

CLASSES = 10
BATCH = 10_000
"""Pictures in a batch of the published data set."""

_SIDE = 32
_PIXELS = _SIDE * _SIDE
_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_MODES = ("1", "L", "P", "RGB")


def read(source: Path) -> Source:
    """CIFAR-10 as 1,024 grey pixels in raster order, a byte each, and one of 10 classes.

    Layouts: the published Python or binary version, or a folder of pictures a class. Raises
    FileNotFoundError or ValueError, naming what `source` holds and the layouts, where it has none.
    """
    return recognise(
        source,
        (
            Layout(
                "cifar-10-batches-py/ as published: data_batch_1 to data_batch_5, test_batch",
                partial(_batches, "cifar-10-batches-py", "", _pickled),
            ),
            Layout(
                "cifar-10-batches-bin/ as published: data_batch_1.bin to data_batch_5.bin, "
                "test_batch.bin",
                partial(_batches, "cifar-10-batches-bin", ".bin", _records),
            ),
            Layout(
                f"a folder a class: {{train,test}}/NAME/*.png or .jpg, perhaps validation too, "
                f"{CLASSES} classes, {_SIDE} x {_SIDE} pixels",
                _folders,
            ),
        ),
    )


Batch = tuple[bytes, list[int]]
"""Pixels as in the published files (picture, channel, row, column), and labels."""


def _batches(name: str, suffix: str, load: Callable[[Path], Batch], source: Path) -> Source | None:
    for root in (source, source / name):
        paths = {s: [root / (each + suffix) for each in names] for s, names in _FILES.items()}
        missing = [file for file in chain(*paths.values()) if not file.is_file()]
        if len(missing) == 6:
            continue
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing")
        splits = {split: partial(_examples, load, paths[split]) for split in paths}
        official = {split: BATCH * len(paths[split]) for split in paths}
        return Source(name, dict(splits), official)
    return None


def _examples(load: Callable[[Path], Batch], paths: list[Path]) -> Iterator[Example]:
    for file in paths:
        pixels, labels = load(file)
        for place, label in enumerate(labels, 1):
            if not 0 <= label < CLASSES:
                raise ValueError(f"{file}: picture {place} has label {label}, expected 0 to 9")
        channels = np.frombuffer(pixels, np.uint8).reshape(-1, 3, _SIDE, _SIDE)
        rows = np.ascontiguousarray(channels.transpose(0, 2, 3, 1)).reshape(-1, _SIDE, 3)
        grey = Image.fromarray(rows).convert("L").tobytes()
        for i, label in enumerate(labels):
            yield (grey[i * _PIXELS : (i + 1) * _PIXELS],), label


def _records(file: Path) -> Batch:
    size = BATCH * (1 + 3 * _PIXELS)
    if file.stat().st_size != size:
        raise ValueError(
            f"{file}: {file.stat().st_size:,} bytes, expected {size:,}: extract it again"
        )
    records = np.frombuffer(file.read_bytes(), np.uint8).reshape(BATCH, -1)
    return records[:, 1:].tobytes(), records[:, 0].tolist()


_NONSENSE = (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError)


def _pickled(file: Path) -> Batch:
    try:
        batch = _plain(file.read_bytes())
        if not isinstance(batch, dict):
            raise ValueError("it is no dictionary")
        pixels, labels = _array(batch.get("data")), batch.get("labels")
        if not isinstance(labels, list) or any(type(label) is not int for label in labels):
            raise ValueError("'labels' is no list of integers")
        if len(labels) != BATCH:
            raise ValueError(f"{len(labels):,} labels, expected {BATCH:,}")
    except _NONSENSE as error:
        raise ValueError(
            f"{file}: no CIFAR-10 batch: {error}. Expected a pickled dictionary with 'data', "
            f"{BATCH:,} x {3 * _PIXELS:,} bytes in a numpy array, and 'labels'; extract the "
            "published archive again"
        ) from None
    return pixels, labels


_ARRAY = {f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")}
_BUFFER = {f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")}
_NAMES = {"numpy ndarray", "numpy dtype", "_codecs encode"} | _ARRAY | _BUFFER
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Call:
    """What a pickle asks to be called. It never is."""

    name: str
    arguments: Any = None
    state: Any = None


def _plain(pickled: bytes) -> Any:
    """The value of a pickle made of plain values and of the names in _NAMES.

    Raises ValueError for any other name or opcode, and one of _NONSENSE for a pickle that makes no
    sense.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "BINSTRING" | "SHORT_BINSTRING":  # Python 2's bytes, which genops decodes
                stack.append(str(argument).encode("latin-1"))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = tuple(stack), below.pop()
                stack.append(items)
            case name if name in _TUPLES:
                items = tuple(stack[-_TUPLES[name] :])
                del stack[-_TUPLES[name] :]
                stack.append(items)
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values, stack = stack, below.pop()
                stack[-1].extend(values)
            case "SETITEM":
                key, value = stack[-2:]
                del stack[-2:]
                _set(stack[-1], [key, value])
            case "SETITEMS":
                values, stack = stack, below.pop()
                _set(stack[-1], values)
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "GLOBAL":
                stack.append(_name(str(argument)))
            case "STACK_GLOBAL":
                word = stack.pop()
                stack.append(_name(f"{stack.pop()} {word}"))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case name:
                raise ValueError(f"its opcode {name} has no place in one")
    raise ValueError("it has no end")


def _set(target: dict[Any, Any], values: list[Any]) -> None:
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, bytes | str):
            raise ValueError("a key is no text")
        target[key.decode("ascii") if isinstance(key, bytes) else key] = value


def _name(name: str) -> _Call:
    if name not in _NAMES:
        raise ValueError(f"it names {'.'.join(name.split())!r:.80}, which has no place in one")
    return _Call(name)


def _call(function: _Call, arguments: Any) -> Any:
    if function.name == "_codecs encode":  # how Python 3 writes bytes for Python 2
        text, encoding = arguments
        if encoding != "latin1":
            raise ValueError(f"it has bytes in {encoding!r:.50}")
        return text.encode("latin-1")
    return _Call(function.name, arguments)


def _array(value: Any) -> bytes:
    """The bytes of an array of unsigned bytes, one row a picture. Raises ValueError for another."""
    raw = dtype = shape = None
    if isinstance(value, _Call) and value.name in _ARRAY:
        _, shape, dtype, by_column, raw = value.state
        if by_column:
            raise ValueError("'data' is stored by column")
    elif isinstance(value, _Call) and value.name in _BUFFER:
        raw, dtype, shape, order = value.arguments
        if order != "C":
            raise ValueError("'data' is stored by column")
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Call):
        raise ValueError("'data' is no numpy array")
    if dtype.name != "numpy dtype" or dtype.arguments[0] not in ("u1", b"u1"):
        raise ValueError("'data' is no array of unsigned bytes")
    if shape != (BATCH, 3 * _PIXELS) or len(raw) != BATCH * 3 * _PIXELS:
        raise ValueError(f"'data' has shape {shape!r:.50} and {len(raw):,} bytes")
    return bytes(raw)


def _folders(source: Path) -> Source | None:
    found = [name for name in SPLITS if (source / name).is_dir()]
    if not found:
        return None
    for name in ("train", "test"):
        if name not in found:
            raise FileNotFoundError(f"{source / name} is missing")
    classes = {name: [c.name for c in entries(source / name) if c.is_dir()] for name in found}
    names = sorted({name for each in classes.values() for name in each})
    for split, each in classes.items():
        for name in names:
            if name not in each:
                raise FileNotFoundError(
                    f"{source / split / name} is missing: all splits have the same classes"
                )
    if len(names) != CLASSES:
        raise FileNotFoundError(
            f"{source / 'train'} has {len(names)} folders, expected {CLASSES}, one a class"
        )
    splits = {split: partial(_pictures, source / split, names) for split in found}
    return Source("folders of pictures", dict(splits))


def _pictures(folder: Path, names: list[str]) -> Iterator[Example]:
    for label, name in enumerate(names):
        paths = files(folder / name, ".png", ".jpg", ".jpeg")
        if not paths:
            raise ValueError(f"{folder / name}: no .png or .jpg in it")
        for file in paths:
            yield (_grey(file),), label


def _grey(file: Path) -> bytes:
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            size, mode = picture.size, picture.mode
            if size == (_SIDE, _SIDE) and mode in _MODES:
                return picture.convert("L").tobytes()
    except Exception as error:  # Pillow's decoders raise what they like, SyntaxError for one
        raise ValueError(f"{file}: cannot be decoded ({error})") from None
    raise ValueError(
        f"{file}: {size[0]} x {size[1]} pixels of mode {mode}, expected {_SIDE} x {_SIDE} in "
        "colour or grey, 8 bits, no transparency"
    )
