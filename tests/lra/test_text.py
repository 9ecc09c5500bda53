"""Text: reviews are the bytes that were written, in either layout; a fault has its place."""

import gzip
import json
import lzma
import re
import tarfile
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapformer.tasks.files import json_splits
from leapformer.tasks.lra import text
from leapformer.tasks.lra.data import prepare
from leapformer.tasks.source import Source

PER_CLASS = 3
LEAVES = [(split, name) for split in ("train", "test") for name in ("neg", "pos")]
PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PER_CLASS", PER_CLASS)
        yield


reviews = st.fixed_dictionaries(
    dict.fromkeys(LEAVES, st.lists(st.text(min_size=1), min_size=PER_CLASS, max_size=PER_CLASS))
)
SOME = {leaf: [f"{leaf} {i} é\r\n" for i in range(PER_CLASS)] for leaf in LEAVES}


def write_folders(root: Path, written: dict) -> Path:
    """`aclImdb` with what does not belong to the task beside it; gives its parent."""
    for (split, name), texts in written.items():
        folder = root / "aclImdb" / split / name
        folder.mkdir(parents=True)
        for i, review in reversed(list(enumerate(texts))):
            (folder / f"{i}_7.txt").write_bytes(review.encode())
        (folder / "._0_7.txt").write_bytes(b"\x00")
        (folder.parent / f"urls_{name}.txt").write_text("http")
    (root / "aclImdb" / "train" / "unsup").mkdir()
    (root / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("no label")
    return root


def json_rows(written: dict, split: str) -> bytes:
    rows = (
        {"label": label, "id": 0, "text": review}
        for label, name in enumerate(("neg", "pos"))
        for review in written[split, name]
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_json(root: Path, written: dict, form: str = "{}.jsonl", suffix: str = "") -> Path:
    root.mkdir(exist_ok=True)
    for split in ("train", "test"):
        packed = PACKED[suffix](json_rows(written, split))
        (root / (form.format(split) + suffix)).write_bytes(packed)
    return root


def contents(source: Source) -> dict:
    return {split: list(examples()) for split, examples in source.splits.items()}


@given(reviews)
def test_reviews_come_back_byte_for_byte_and_alike_from_both_layouts(written):
    expected = {
        split: [
            ((review.encode(),), label)
            for label, name in enumerate(("neg", "pos"))
            for review in written[split, name]
        ]
        for split in ("train", "test")
    }
    with TemporaryDirectory() as folder:
        root = Path(folder)
        parent = write_folders(root / "folders", written)
        assert contents(text.read(parent)) == expected
        assert contents(text.read(parent / "aclImdb")) == expected
        for i, suffix in enumerate(PACKED):
            lines = write_json(root / f"json{i}", written, "my_{}.jsonl", suffix)
            assert contents(text.read(lines)) == expected


def test_layouts_have_their_names_and_official_sizes(tmp_path):
    folders = text.read(write_folders(tmp_path / "a", SOME))
    assert folders.layout == "aclImdb"
    assert folders.official == {"train": 2 * PER_CLASS, "test": 2 * PER_CLASS}
    lines = text.read(write_json(tmp_path / "b", SOME))
    assert (lines.layout, lines.official) == ("JSON lines", None)


def test_a_split_can_be_read_again(tmp_path):
    train = text.read(write_folders(tmp_path, SOME)).splits["train"]
    assert list(train()) == list(train())


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_is_read_under_each_of_its_names(tmp_path, name):
    write_json(tmp_path, SOME)
    (tmp_path / f"{name}.jsonl").write_text('{"text": "so so", "label": 1}\n')
    source = text.read(tmp_path)
    assert list(source.splits) == ["train", "validation", "test"]
    assert list(source.splits["validation"]()) == [((b"so so",), 1)]


def test_a_row_is_read_only_when_it_is_asked_for(tmp_path):
    write_json(tmp_path, SOME)
    (tmp_path / "train.jsonl").write_text('{"text": "good", "label": 1}\nbad\n')
    examples = text.read(tmp_path).splits["train"]()
    assert next(examples) == ((b"good",), 1)
    with pytest.raises(ValueError, match=r"train\.jsonl:2: not JSON"):
        next(examples)


GOOD = b'{"text": "good", "label": 1}\n'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"\n", "not JSON"),
        (b'{"text": "good", "label"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["good", 1]\n', "expected a JSON object"),
        (b'{"label": 1}\n', r"no 'text', only \['label'\]"),
        (b'{"text": "good"}\n', r"no 'label', only \['text'\]"),
        (b'{"text": "", "label": 1}\n', "'text' must be a text that is not empty"),
        (b'{"text": 5, "label": 1}\n', "'text' must be a text"),
        (b'{"text": "\\ud800", "label": 1}\n', "'text' has no UTF-8 form"),
        (b'{"text": "good", "label": 2}\n', "'label' to be 0 or 1, found 2"),
        (b'{"text": "good", "label": true}\n', "0 or 1, found True"),
        (b'{"text": "good", "label": 1.0}\n', r"0 or 1, found 1\.0"),
        (b'{"text": "good", "label": "pos"}\n', "0 or 1, found 'pos'"),
        (b'{"text": "\xff", "label": 1}\n', "not UTF-8"),
    ],
)
@pytest.mark.parametrize("suffix", PACKED)
def test_malformed_line_is_refused_by_file_and_line(tmp_path, line, fault, suffix):
    write_json(tmp_path, SOME, suffix=suffix)
    file = tmp_path / f"train.jsonl{suffix}"
    file.write_bytes(PACKED[suffix](GOOD + line))
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}:2: .*{fault}"):
        list(text.read(tmp_path).splits["train"]())


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-12], lambda data: b"no such form" + data])
def test_broken_packed_file_is_refused_by_name(tmp_path, suffix, spoil):
    write_json(tmp_path, SOME, suffix=suffix)
    file = tmp_path / f"train.jsonl{suffix}"
    file.write_bytes(spoil(PACKED[suffix](GOOD * 1000)))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}:\d+: cannot be unpacked"):
        list(text.read(tmp_path).splits["train"]())


def test_file_without_rows_is_refused_by_name(tmp_path):
    write_json(tmp_path, SOME)
    (tmp_path / "test.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"test\.jsonl: no rows"):
        list(text.read(tmp_path).splits["test"]())


@pytest.mark.parametrize("leaf", ["train/neg", "train/pos", "test/neg", "test/pos"])
def test_one_review_too_few_or_too_many_is_refused_unless_asked_for(tmp_path, leaf):
    folder = write_folders(tmp_path / "source", SOME) / "aclImdb" / leaf
    (folder / "9_9.txt").write_text("more")
    with pytest.raises(ValueError, match=r"7.*the release \(aclImdb\) has .* or give --partial"):
        prepare("text", tmp_path / "source", tmp_path / "made")
    for name in ("9_9.txt", "1_7.txt"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"5.*or give --partial"):
        prepare("text", tmp_path / "source", tmp_path / "made")
    about = prepare("text", tmp_path / "source", tmp_path / "made", partial=True)
    assert about["splits"][leaf.partition("/")[0]]["examples"] == 5


@pytest.mark.parametrize(("content", "fault"), [(b"", "is empty"), (b"\xff", "not UTF-8")])
def test_malformed_review_is_refused_by_its_file(tmp_path, content, fault):
    file = write_folders(tmp_path, SOME) / "aclImdb" / "test" / "pos" / "1_7.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{fault}"):
        list(text.read(tmp_path).splits["test"]())


def refused(folder: Path, error: type[Exception], *words: str) -> None:
    """The error has these words, the folder and both layouts."""
    with pytest.raises(error) as raised:
        text.read(folder)
    for word in (*words, str(folder), "aclImdb/ as published", "JSON lines"):
        assert word in str(raised.value)


@pytest.mark.parametrize("leaf", ["train/neg", "train/pos", "test/neg", "test/pos"])
def test_missing_class_is_named_with_all_layouts(tmp_path, leaf):
    write_folders(tmp_path, {key: texts for key, texts in SOME.items() if "/".join(key) != leaf})
    refused(tmp_path, FileNotFoundError, f"aclImdb/{leaf} is missing", "holds aclImdb/")


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split_is_named_with_all_layouts(tmp_path, split):
    write_json(tmp_path, SOME)
    (tmp_path / f"{split}.jsonl").unlink()
    refused(tmp_path, FileNotFoundError, f"{split}.jsonl is missing")


def test_folder_without_a_layout_is_refused_with_what_it_holds(tmp_path):
    refused(tmp_path, FileNotFoundError, "holds nothing")
    (tmp_path / "reviews.csv").touch()
    (tmp_path / "imdb.tar.gz").touch()
    refused(tmp_path, FileNotFoundError, "imdb.tar.gz, reviews.csv (extract imdb.tar.gz first)")
    refused(tmp_path / "nowhere", FileNotFoundError, "is not there")


def test_two_layouts_side_by_side_are_refused(tmp_path):
    refused(write_json(write_folders(tmp_path, SOME), SOME), ValueError, "aclImdb and JSON lines")


def test_archive_or_file_in_place_of_a_folder_is_refused(tmp_path):
    archive = tmp_path / "release.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(write_json(tmp_path / "data", SOME), "data")
    refused(archive, ValueError, "is an archive: extract it")
    refused(tmp_path / "data" / "train.jsonl", ValueError, "is a file: give the folder")


@pytest.mark.parametrize("other", ["train.jsonl.gz", "imdb_train.jsonl", "imdb_val.jsonl"])
def test_files_of_two_data_sets_are_not_mixed(tmp_path, other):
    write_json(tmp_path, SOME)
    (tmp_path / other).touch()
    with pytest.raises(ValueError, match=f"{re.escape(other)}.*keep one"):
        json_splits(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_reviews_are_read_as_they_are(shared_data, split):
    source = text.read(shared_data / "imdb")
    with lzma.open(shared_data / "imdb" / f"imdb_{split}.jsonl.xz", "rt", encoding="utf-8") as rows:
        for line, example in zip(islice(rows, 500), source.splits[split](), strict=False):
            row = json.loads(line)
            assert example == ((row["text"].encode(),), row["label"])
    assert source.layout == "JSON lines"
