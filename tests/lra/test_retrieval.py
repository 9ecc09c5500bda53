"""Retrieval: pairs come back byte for byte, and made pairs give nothing away but their texts."""

import json
import lzma
import re
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapformer.tasks.lra import retrieval
from leapformer.tasks.source import Source

FILES = {"train": "train", "validation": "eval", "test": "test"}
LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}

texts = st.binary(min_size=1, max_size=50)
rows = st.lists(st.tuples(st.sampled_from(sorted(LABELS)), texts, texts), min_size=1, max_size=5)


def write_release(folder: Path, split: str, lines: bytes) -> Path:
    """A release with these lines in one split, and a pair in the others."""
    folder.mkdir(exist_ok=True)
    for name, part in FILES.items():
        content = lines if name == split else b"1.0\tA\tB\tb'a'\tb'b'\n"
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(content)
    return folder


def read_split(folder: Path, split: str) -> list:
    return list(retrieval.read(folder).splits[split]())


@given(rows, st.sampled_from(sorted(FILES)), st.booleans())
def test_release_gives_the_bytes_that_its_texts_stand_for(written, split, ends):
    lines = "\n".join(f"{label}\tX-1\tX-2\t{a!r}\t{b!r}" for label, a, b in written)
    with TemporaryDirectory() as folder:
        write_release(Path(folder), split, (lines + "\n" * ends).encode())
        expected = [((a, b), LABELS[label]) for label, a, b in written]
        assert read_split(Path(folder), split) == expected


@given(rows, st.data())
def test_release_cut_within_its_last_line_is_refused_by_file_and_line(written, data):
    lines = [f"{label}\tX-1\tX-2\t{a!r}\t{b!r}" for label, a, b in written]
    lines[-1] = lines[-1][: data.draw(st.integers(1, len(lines[-1]) - 1))]
    with TemporaryDirectory() as folder:
        write_release(Path(folder), "train", "\n".join(lines).encode())
        with pytest.raises(ValueError, match=rf"train\.tsv:{len(lines)}: "):
            read_split(Path(folder), "train")


def test_release_with_plain_texts_gives_them_as_they_are(tmp_path):
    text = "\"quoted\" \\n and 'café'"
    write_release(tmp_path, "test", f"0.0\tX\tY\t{text}\t bare \r\n".encode())
    assert read_split(tmp_path, "test") == [((text.encode(), b" bare "), 0)]


def test_release_has_its_name_and_official_sizes(tmp_path):
    source = retrieval.read(write_release(tmp_path, "test", b"0.0\tX\tY\ta\tb\n"))
    assert source.layout == "Long-Range Arena's release"
    assert source.official == {"train": 147_086, "validation": 18_090, "test": 17_437}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "expected 5 columns .* found 1"),
        (b"1.0\tX\tY\ta", "found 4"),
        (b"1.0\tX\tY\ta\tb\tc", "found 6"),
        (b"2.0\tX\tY\ta\tb", "label 0.0 or 1.0, found '2.0'"),
        (b"label\tX\tY\ta\tb", "found 'label'"),
        (b"1.0\tX\tY\ta\t", "a text is empty"),
        (b"1.0\tX\tY\tb''\tb'b'", "a text is empty"),
        (b"1.0\tX\tY\tb'a'\tb'b", "Python's form of bytes"),
        (b"1.0\tX\tY\tb'a'\tb", "Python's form of bytes"),
        (b"1.0\tX\tY\tb'a'\t'b'", "Python's form of bytes"),
        (b"1.0\tX\tY\tb'a'\tb'\\x4'", "Python's form of bytes"),
        (b"1.0\tX\tY\tb'a'\t__import__('os')", "Python's form of bytes"),
        (b"1.0\tX\tY\ta\t\xff", "not UTF-8"),
    ],
)
def test_malformed_line_of_a_release_is_refused_by_file_and_line(tmp_path, line, fault):
    write_release(tmp_path, "validation", b"1.0\tX\tY\ta\tb\n" + line + b"\n")
    file = tmp_path / "new_aan_pairs.eval.tsv"
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}:2: .*{fault}"):
        read_split(tmp_path, "validation")


def test_file_without_pairs_is_refused_by_name(tmp_path):
    write_release(tmp_path, "test", b"")
    with pytest.raises(ValueError, match=r"test\.tsv: no pairs"):
        read_split(tmp_path, "test")


@st.composite
def graphs(draw):
    """Links among papers, some of them cited much; none twice, in whichever direction."""
    papers, links = draw(st.integers(100, 200)), draw(st.integers(100, 200))
    random, found = Random(draw(st.integers(0, 2**32 - 1))), {}
    while len(found) < links:
        a, b = random.randrange(papers), int(papers * random.random() ** 2)
        if a != b:
            found.setdefault(frozenset((a, b)), (f"P{a}", f"P{b}"))
    return sorted(found.values())


@given(graphs(), st.integers(0, 2**32 - 1))
def test_a_document_stands_in_as_many_linked_as_unlinked_pairs_of_a_split(links, seed):
    for linked, unlinked in retrieval.split_pairs(links, seed).values():
        for side in (0, 1):
            linked_often, unlinked_often = (
                Counter(pair[side] for pair in pairs) for pairs in (linked, unlinked)
            )
            assert linked_often == unlinked_often


@given(graphs(), st.integers(0, 2**32 - 1))
def test_each_link_is_in_one_split_and_no_two_documents_make_two_pairs(links, seed):
    splits = retrieval.split_pairs(links, seed)
    assert sorted(link for linked, _ in splits.values() for link in linked) == links
    pairs = [frozenset(p) for linked, unlinked in splits.values() for p in (*linked, *unlinked)]
    assert all(len(pair) == 2 for pair in pairs)
    assert len(pairs) == len(set(pairs)) == 2 * len(links)


@given(graphs(), st.integers(0, 2**32 - 1))
def test_a_tenth_of_the_links_is_for_validation_and_a_tenth_for_test(links, seed):
    sizes = {split: len(pairs) for split, (pairs, _) in retrieval.split_pairs(links, seed).items()}
    tenth = len(links) // 10
    assert sizes == {"train": len(links) - 2 * tenth, "validation": tenth, "test": tenth}


@given(graphs(), st.integers(0, 2**32 - 1))
def test_same_seed_same_pairs_other_seed_other_pairs(links, seed):
    assert retrieval.split_pairs(links, seed) == retrieval.split_pairs(links, seed)
    assert retrieval.split_pairs(links, seed) != retrieval.split_pairs(links, seed + 1)


@pytest.mark.parametrize(
    "links",
    [
        [],
        [(f"A{i}", f"B{i}") for i in range(9)],
        [("A", f"B{i}") for i in range(100)],
        [(f"A{i}", f"A{j}") for i in range(15) for j in range(i)],
    ],
    ids=["none", "too few", "one paper cites all", "all are linked"],
)
def test_links_that_leave_no_unlinked_pairs_are_refused(links):
    with pytest.raises(ValueError, match=f"^{len(links)} linked pairs are too few"):
        retrieval.split_pairs(links, 0)


LINKS = [(f"P{i}", f"P{j}") for i in range(40) for j in (i + 1, i + 3, i + 7) if j < 40]


def write_documents(folder: Path, links: list = LINKS, suffix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    docs = "".join(json.dumps({"id": f"P{i}", "text": f"text {i}"}) + "\n" for i in range(40))
    packed = lzma.compress(docs.encode()) if suffix else docs.encode()
    (folder / f"docs.jsonl{suffix}").write_bytes(packed)
    (folder / "citations.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in links))
    return folder


def contents(source: Source) -> dict:
    return {split: list(examples()) for split, examples in source.splits.items()}


def test_documents_with_links_alternate_linked_and_unlinked_texts(tmp_path):
    source = retrieval.read(write_documents(tmp_path))
    assert (source.layout, source.official) == ("documents with links", None)
    assert list(source.splits) == list(FILES)
    linked = {(f"text {a[1:]}".encode(), f"text {b[1:]}".encode()) for a, b in LINKS}
    for examples in contents(source).values():
        assert [label for _, label in examples] == [1, 0] * (len(examples) // 2)
        assert [pair in linked for pair, _ in examples] == [label == 1 for _, label in examples]


def test_order_repetition_direction_and_packing_of_links_change_nothing(tmp_path):
    expected = contents(retrieval.read(write_documents(tmp_path / "a")))
    other = [*reversed(LINKS), LINKS[5], *(link[::-1] for link in LINKS if link < link[::-1])]
    assert contents(retrieval.read(write_documents(tmp_path / "b", other, ".xz"))) == expected


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("citations.tsv", "P1\tP99\n", "no document has the id 'P99'"),
        ("citations.tsv", "P99\tP1\n", "no document has the id 'P99'"),
        ("citations.tsv", "P1\tP1\n", "'P1' is linked with itself"),
        ("citations.tsv", "P1 P2\n", "expected two ids"),
        ("citations.tsv", "P1\tP2\t1\n", "expected two ids"),
        ("citations.tsv", "\n", "expected two ids"),
        ("docs.jsonl", '{"id": "P0", "text": "again"}\n', "'P0' was there before"),
        ("docs.jsonl", '{"id": "P98", "text": ""}\n', "'text' must be a text that is not empty"),
        ("docs.jsonl", '{"id": 98, "text": "x"}\n', "'id' must be a text"),
        ("docs.jsonl", '{"text": "x"}\n', "no 'id'"),
    ],
)
@pytest.mark.parametrize("split", FILES)
def test_malformed_document_or_link_is_refused_by_file_and_line(tmp_path, file, line, fault, split):
    path = write_documents(tmp_path) / file
    before = path.read_text()
    path.write_text(before + line)
    place = f"{path}:{before.count(chr(10)) + 1}"
    with pytest.raises(ValueError, match=f"^{re.escape(place)}: .*{fault}"):
        read_split(tmp_path, split)


def test_too_few_links_are_refused_by_file(tmp_path):
    write_documents(tmp_path, LINKS[:9])
    with pytest.raises(ValueError, match=r"citations\.tsv: 9 linked pairs are too few"):
        read_split(tmp_path, "train")


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1), st.integers(0, 1)), min_size=1))
def test_json_lines_come_back_byte_for_byte(written):
    lines = [
        json.dumps(dict(zip(("text1", "text2", "label"), row, strict=True))) for row in written
    ]
    with TemporaryDirectory() as folder:
        for split in FILES:
            (Path(folder) / f"{split}.jsonl").write_text("\n".join(lines))
        expected = [((a.encode(), b.encode()), label) for a, b, label in written]
        source = retrieval.read(Path(folder))
        assert contents(source) == dict.fromkeys(FILES, expected)
        assert (source.layout, source.official) == ("JSON lines", None)


@pytest.mark.parametrize("missing", ["text1", "text2", "label"])
def test_json_line_without_a_key_is_refused_by_file_and_line(tmp_path, missing):
    row = {"text1": "a", "text2": "b", "label": 0}
    for split in FILES:
        less = {key: value for key, value in row.items() if key != missing}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(less))
    with pytest.raises(ValueError, match=rf"test\.jsonl:2: no '{missing}'"):
        read_split(tmp_path, "test")


def refused(folder: Path, error: type[Exception], *words: str) -> None:
    """The error has these words, the folder and all layouts."""
    with pytest.raises(error) as raised:
        retrieval.read(folder)
    layouts = ("new_aan_pairs.{train,eval,test}.tsv", "documents with links", "JSON lines")
    for word in (*words, str(folder), *layouts):
        assert word in str(raised.value)


@pytest.mark.parametrize("part", FILES.values())
def test_missing_file_of_a_release_is_named_with_all_layouts(tmp_path, part):
    write_release(tmp_path, "test", b"")
    (tmp_path / f"new_aan_pairs.{part}.tsv").unlink()
    refused(tmp_path, FileNotFoundError, f"new_aan_pairs.{part}.tsv is missing")


@pytest.mark.parametrize("file", ["docs.jsonl", "citations.tsv"])
def test_documents_without_links_and_links_without_documents_are_refused(tmp_path, file):
    (write_documents(tmp_path) / file).unlink()
    refused(tmp_path, FileNotFoundError, f"{file} is missing")


def test_folder_without_a_layout_or_with_two_is_refused(tmp_path):
    refused(tmp_path, FileNotFoundError, "holds nothing")
    write_release(write_documents(tmp_path), "test", b"")
    refused(tmp_path, ValueError, "release and documents with links side by side")


def test_documents_plain_and_packed_are_not_both_read(tmp_path):
    write_documents(write_documents(tmp_path), suffix=".xz")
    with pytest.raises(ValueError, match=r"docs\.jsonl and docs\.jsonl\.xz are both there"):
        retrieval.read(tmp_path)


def test_the_real_papers_make_balanced_splits_of_whole_texts(shared_data):
    folder = shared_data / "acl_pairs"
    with lzma.open(folder / "docs.jsonl.xz", "rt", encoding="utf-8") as lines:
        docs = {row["id"]: row["text"].encode() for row in map(json.loads, lines)}
    links = [line.split("\t") for line in (folder / "citations.tsv").read_text().splitlines()]
    linked = {frozenset((docs[a], docs[b])) for a, b in links}
    splits = contents(retrieval.read(folder))
    # 1,156 links, 7 of them from a paper to one that cites it
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 2 * 921,
        "validation": 2 * 114,
        "test": 2 * 114,
    }
    for examples in splits.values():
        assert all((frozenset(pair) in linked) == (label == 1) for pair, label in examples)
        assert sum(label for _, label in examples) * 2 == len(examples)
