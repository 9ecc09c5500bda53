"""Image: the same pictures from every layout, in grey; and no code of a file is ever run."""

import io
import itertools
import os
import pickle
import re
import struct
import tarfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leapformer.tasks.lra import image
from leapformer.tasks.source import Source

BATCH = 12
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
REAL = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
CLASSES = [f"class {c}" for c in "abcdefghij"]


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "BATCH", BATCH)
        yield


@pytest.fixture(scope="module")
def pictures():
    """By batch: pixels (picture, channel x row x column) and labels, each class in each batch."""
    random = np.random.default_rng(0)
    return {
        name: (
            random.integers(0, 256, (BATCH, 3072), np.uint8),
            [int(label) for label in random.permutation([*range(10), 3, 3])],
        )
        for name in (*BATCHES, "test_batch")
    }


def grey(row: np.ndarray) -> bytes:
    """ITU-R 601 luma in Pillow's fixed point, written anew."""
    red, green, blue = row.astype(np.int64).reshape(3, 1024)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8).tobytes()


def python2(value) -> bytes:
    """A value as Python 2 pickles it with protocol 2: texts are strings of bytes."""
    if isinstance(value, dict):
        items = b"".join(python2(key) + python2(held) for key, held in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(python2, value)) + b"t"
    if isinstance(value, bytes):
        short = len(value) < 256
        return (
            b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
        ) + value
    if isinstance(value, np.ndarray):
        make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        make += python2((0,)) + python2(b"b") + b"\x87R("
        code = value.dtype.str[1:].encode()
        dtype = b"cnumpy\ndtype\n" + python2(code) + b"K\x00K\x01\x87R"
        dtype += python2((3, b"|", None, None, None, -1, -1, 0)) + b"b"
        order = b"\x88" if value.flags.f_contiguous else b"\x89"
        raw = python2(value.tobytes("A"))
        return make + b"K\x01" + python2(value.shape) + dtype + order + raw + b"tb"
    return b"N" if value is None else b"J" + struct.pack("<i", value)


def batch(pixels, labels) -> dict:
    """As published, with what the reader does not need."""
    names = [f"picture_{i}.png".encode() for i in range(len(labels))]
    return {b"batch_label": b"batch", b"labels": labels, b"data": pixels, b"filenames": names}


def as_python2(content: dict) -> bytes:
    return b"\x80\x02" + python2(content) + b"."


def as_python3(protocol, text_keys):
    def write(content: dict) -> bytes:
        keys = {key.decode() if text_keys else key: value for key, value in content.items()}
        return pickle.dumps(keys, protocol)

    return write


FORMS = {"Python 2": as_python2} | {
    f"Python 3, protocol {protocol}, {'text' if text else 'bytes'}": as_python3(protocol, text)
    for protocol, text in itertools.product((2, 3, 4, 5), (True, False))
}


def write_python(root: Path, pictures: dict, form=as_python2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in pictures.items():
        (folder / name).write_bytes(form(batch(pixels, labels)))
    (folder / "batches.meta").write_bytes(b"never read")
    return root


def write_binary(root: Path, pictures: dict) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in pictures.items():
        records = np.column_stack([np.array(labels, np.uint8), pixels])
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return root


def write_folders(root: Path, pictures: dict, suffix: str = ".png") -> Path:
    for name, (pixels, labels) in pictures.items():
        for i, (row, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = root / ("test" if name == "test_batch" else "train") / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0).copy())
            picture.save(folder / f"{name}_{i:02}{suffix}")
    return root


def contents(source: Source) -> dict:
    return {split: list(examples()) for split, examples in source.splits.items()}


def expected(pictures: dict) -> dict:
    return {
        split: [
            ((grey(row),), label)
            for name in names
            for row, label in zip(*pictures[name], strict=True)
        ]
        for split, names in (("train", BATCHES), ("test", ["test_batch"]))
    }


@pytest.mark.parametrize("form", FORMS)
def test_python_version_gives_grey_pixels_in_the_order_of_the_batches(tmp_path, pictures, form):
    root = write_python(tmp_path, pictures, FORMS[form])
    source = image.read(root)
    assert contents(source) == expected(pictures)
    assert contents(image.read(root / "cifar-10-batches-py")) == expected(pictures)
    assert source.layout == "cifar-10-batches-py"
    assert source.official == {"train": 5 * BATCH, "test": BATCH}


def test_binary_version_gives_the_same(tmp_path, pictures):
    source = image.read(write_binary(tmp_path, pictures))
    assert contents(source) == expected(pictures)
    assert contents(image.read(tmp_path / "cifar-10-batches-bin")) == expected(pictures)
    assert source.layout == "cifar-10-batches-bin"
    assert source.official == {"train": 5 * BATCH, "test": BATCH}


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_folders_give_the_same_by_class_and_name(tmp_path, pictures, suffix):
    source = image.read(write_folders(tmp_path, pictures, suffix))
    by_class = {
        split: sorted(examples, key=lambda example: example[1])  # stable: names are in order
        for split, examples in expected(pictures).items()
    }
    assert contents(source) == by_class
    assert (source.layout, source.official) == ("folders of pictures", None)


def test_nothing_is_ever_unpickled(tmp_path, pictures, monkeypatch):
    root = write_python(tmp_path, pictures)

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert contents(image.read(root)) == expected(pictures)


class Makes:
    """Pickled, it makes a folder where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", [None, b"labels", b"data", b"filenames"])
def test_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, pictures, protocol, key):
    ran = tmp_path / "ran"
    content = batch(*pictures["data_batch_1"])
    evil = pickle.dumps(content | {key: Makes(ran)} if key else Makes(ran), protocol)
    file = write_python(tmp_path, pictures) / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(evil)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: no CIFAR-10 batch: it"):
        list(image.read(tmp_path).splits["train"]())
    assert not ran.exists()


DEEP = b"N" + b"\x85" * 300_000  # a tuple in a tuple and so on: its hash overruns the stack


@pytest.mark.parametrize(
    "opcodes",
    [
        b"",
        b".",
        b"t.",
        b"}(U\1au.",
        b"}U\1aN.",
        b"h\0.",
        b"NNR.",
        b"NNb.",
        b"cnumpy\ndtype\n.",
        b"}(U\4datacnumpy.core.multiarray\n_reconstruct\nNRu.",
        b"}(U\4datacnumpy.core.multiarray\n_reconstruct\nNR(K\1"
        + (DEEP + b"cnumpy\ndtype\n(U\2u1tR\x89U\0tbu."),
        b"}(" + DEEP + b"Nu.",
    ],
    ids=lambda opcodes: repr(opcodes[:30]),
)
def test_a_pickle_that_makes_no_sense_is_refused_by_name(tmp_path, opcodes):
    file = tmp_path / "test_batch"
    file.write_bytes(b"\x80\x02" + opcodes)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: no CIFAR-10 batch: "):
        image._pickled(file)


@given(st.data())
def test_a_spoilt_pickle_is_read_or_refused_by_name(pictures, data):
    good = FORMS[data.draw(st.sampled_from(sorted(FORMS)))](batch(*pictures["test_batch"]))
    frame = [*range(150), *range(len(good) - 400, len(good))]  # else it is mostly pixels
    spoilt = bytearray(good)
    for place in data.draw(st.lists(st.sampled_from(frame), max_size=3)):
        spoilt[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(good), *frame]))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "test_batch"
        file.write_bytes(spoilt[:end])
        refusal = ""
        try:
            pixels, labels = image._pickled(file)
        except ValueError as error:
            refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{file}: no CIFAR-10 batch: ")
    else:
        assert (len(pixels), len(labels)) == (BATCH * 3072, BATCH)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda p, x: ([], 0), "it is no dictionary"),
        (lambda p, x: ({b"labels": x}, 0), "'data' is no numpy array"),
        (lambda p, x: ({b"data": p}, 0), "'labels' is no list of integers"),
        (lambda p, x: ({b"data": b"bytes", b"labels": x}, 0), "'data' is no numpy array"),
        (lambda p, x: (batch(p, [b"cat"] * BATCH), 0), "'labels' is no list of integers"),
        (lambda p, x: (batch(p, x[1:]), 0), "11 labels, expected 12"),
        (lambda p, x: (batch(p[1:], x), 0), r"'data' has shape \(11, 3072\)"),
        (lambda p, x: (batch(p.reshape(-1, 3, 1024), x), 0), "'data' has shape"),
        (lambda p, x: (batch(p.view(np.int8), x), 0), "no array of unsigned bytes"),
        (lambda p, x: (batch(p.astype(np.float32), x), 0), "no array of unsigned bytes"),
        (lambda p, x: (batch(np.asfortranarray(p), x), 0), "'data' is stored by column"),
        (lambda p, x: (batch(p, x), 1), "no CIFAR-10 batch"),
        (lambda p, x: (batch(p, x), 9000), "no CIFAR-10 batch"),
    ],
)
@pytest.mark.parametrize("form", ["Python 2", "Python 3, protocol 5, bytes"])
def test_another_pickle_is_refused_by_file(tmp_path, pictures, spoil, fault, form):
    file = write_python(tmp_path, pictures) / "cifar-10-batches-py" / "test_batch"
    content, cut = spoil(*pictures["test_batch"])
    written = FORMS[form](content) if isinstance(content, dict) else pickle.dumps(content, 2)
    file.write_bytes(written[: len(written) - cut])
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{fault}"):
        list(image.read(tmp_path).splits["test"]())


@pytest.mark.parametrize(
    ("write", "label"), [(write_python, -1), (write_python, 10), (write_binary, 10)]
)
def test_label_out_of_range_is_refused_by_file_and_picture(tmp_path, pictures, write, label):
    pixels, labels = pictures["data_batch_4"]
    spoilt = pictures | {"data_batch_4": (pixels, [*labels[:4], label, *labels[5:]])}
    source = image.read(write(tmp_path, spoilt))
    with pytest.raises(ValueError, match=rf"data_batch_4\S*: picture 5 has label {label},"):
        list(source.splits["train"]())


@pytest.mark.parametrize("change", [-1, 1])
def test_binary_batch_of_another_size_is_refused_by_file(tmp_path, pictures, change):
    file = write_binary(tmp_path, pictures) / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes((file.read_bytes() + b"\0")[: BATCH * 3073 + change])
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .* bytes, expected 36,876"):
        list(image.read(tmp_path).splits["train"]())


def encoded(form: str, size=(32, 32), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, form)
    return stream.getvalue()


def claims_to_be_huge() -> bytes:
    """The first chunk of a PNG of 60,000 x 60,000 pixels; Pillow raises no OSError for it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded("PNG")[33:]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (claims_to_be_huge(), "cannot be decoded"),
        (b"", "cannot be decoded"),
        (b"no picture", "cannot be decoded"),
        (encoded("BMP"), "cannot be decoded"),
        (encoded("PNG")[:-200], "cannot be decoded"),
        (encoded("JPEG")[:-200], "cannot be decoded"),
        (encoded("PNG")[:40], "cannot be decoded"),
        (encoded("PNG", (31, 32)), "31 x 32 pixels of mode RGB, expected 32 x 32"),
        (encoded("JPEG", (32, 33)), "32 x 33 pixels"),
        (encoded("PNG", mode="RGBA"), "mode RGBA"),
        (encoded("PNG", mode="I;16"), "mode I;16"),
    ],
)
def test_picture_that_cannot_be_used_is_refused_by_file(tmp_path, pictures, content, fault):
    file = write_folders(tmp_path, pictures) / "test" / CLASSES[5] / "new.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{fault}"):
        list(image.read(tmp_path).splits["test"]())


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_pictures_that_are_grey_or_have_a_palette_are_read(tmp_path, pictures, mode):
    file = write_folders(tmp_path, pictures) / "test" / CLASSES[0] / "0.png"
    file.write_bytes(encoded("PNG", mode=mode))
    first = next(image.read(tmp_path).splits["test"]())
    with Image.open(file) as picture:
        assert picture.mode == mode
        assert first == ((picture.convert("RGB").convert("L").tobytes(),), 0)


def refused(folder: Path, error: type[Exception], *words: str) -> None:
    """The error has these words, the folder and all layouts."""
    with pytest.raises(error) as raised:
        image.read(folder)
    layouts = ("cifar-10-batches-py/ as", "cifar-10-batches-bin/ as", "a folder a class")
    for word in (*words, str(folder), *layouts):
        assert word in str(raised.value)


@pytest.mark.parametrize("name", [*BATCHES, "test_batch"])
def test_missing_batch_is_named_with_all_layouts(tmp_path, pictures, name):
    (write_python(tmp_path / "a", pictures) / "cifar-10-batches-py" / name).unlink()
    refused(tmp_path / "a", FileNotFoundError, f"{name} is missing")
    (write_binary(tmp_path / "b", pictures) / "cifar-10-batches-bin" / f"{name}.bin").unlink()
    refused(tmp_path / "b", FileNotFoundError, f"{name}.bin is missing")


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_class_or_split_that_only_another_split_has_is_refused(tmp_path, pictures, split, other):
    folder = write_folders(tmp_path, pictures) / split
    (folder / CLASSES[2]).rename(folder / "other class")
    refused(tmp_path, FileNotFoundError, "is missing: all splits have the same classes")
    folder.rename(tmp_path / "elsewhere")
    refused(tmp_path, FileNotFoundError, f"{folder} is missing", f"elsewhere/, {other}/")


def test_validation_has_the_classes_of_the_others_too(tmp_path, pictures):
    write_folders(tmp_path, pictures)
    for name in CLASSES:
        folder = tmp_path / "validation" / name
        if name != CLASSES[0]:
            refused(tmp_path, FileNotFoundError, f"{folder} is missing")
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(encoded("JPEG"))
    source = image.read(tmp_path)
    assert list(source.splits) == ["train", "validation", "test"]
    assert [label for _, label in source.splits["validation"]()] == list(range(10))


def test_other_than_ten_classes_and_classes_without_pictures_are_refused(tmp_path, pictures):
    write_folders(tmp_path, pictures)
    for split in ("train", "test"):
        (tmp_path / split / "class k").mkdir()
    refused(tmp_path, FileNotFoundError, "has 11 folders, expected 10")
    for split in ("train", "test"):
        (tmp_path / split / "class k").rmdir()
    for file in (tmp_path / "test" / CLASSES[9]).iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=f"test/{CLASSES[9]}: no .png or .jpg"):
        list(image.read(tmp_path).splits["test"]())


def test_folder_without_a_layout_or_with_two_is_refused(tmp_path, pictures):
    refused(tmp_path, FileNotFoundError, "holds nothing")
    write_binary(write_python(tmp_path, pictures), pictures)
    refused(tmp_path, ValueError, "cifar-10-batches-py and cifar-10-batches-bin side by side")


def test_archive_in_place_of_a_folder_is_refused(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(__file__, "data_batch_1")
    refused(archive, ValueError, "is an archive: extract it")
    refused(tmp_path, FileNotFoundError, "(extract cifar-10-python.tar.gz first)")


def test_real_pictures_are_read_by_class(shared_data, tmp_path):
    with tarfile.open(shared_data / "cifar10" / "cifar10_jpeg.tar.xz", "r|xz") as tar:
        for member in tar:
            if re.fullmatch(r"(train|test)/[a-z]+/000[0-2]\.jpg", member.name):
                file = tmp_path / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(tar.extractfile(member).read())
    for split, examples in contents(image.read(tmp_path)).items():
        files = [tmp_path / split / name / f"000{i}.jpg" for name in REAL for i in range(3)]
        assert [label for _, label in examples] == [i // 3 for i in range(30)]
        for file, ((pixels,), _) in zip(files, examples, strict=True):
            with Image.open(file) as picture:
                channels = np.asarray(picture).reshape(1024, 3).T
            assert pixels == grey(channels.reshape(-1))
