"""Corpora: every layout is read whole, in order, lazily; a fault has its file and its cure."""

import gzip
import json
import lzma
import re
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapformer.tasks.files import SPLITS
from leapformer.tasks.lm.corpus import natural, read, text_of

PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
WIKITEXT = ("train", "valid", "test")
MARK = b"\xef\xbb\xbf"

HEADINGS = [" = Title = ", "= T =", " = 1933 Treasure Coast hurricane = "]
NO_HEADINGS = [" = = Section = = ", " = = = Part = = = ", " a = b ", " =", "= =", " = x", "text é"]
BLANK = ["", " ", "\t", " \x0b "]
lines = st.lists(st.sampled_from([*HEADINGS, *NO_HEADINGS, *BLANK, *BLANK]), max_size=24)
texts = st.lists(st.text(min_size=1), min_size=1, max_size=5)


def contents(folder: Path) -> dict[str, list[str]]:
    """The texts of each split."""
    return {name: [d.text for d in reader()] for name, reader in read(folder).splits.items()}


def write_wikitext(root: Path, content: bytes, suffix: str = ".tokens") -> Path:
    root.mkdir(exist_ok=True)
    for name in WIKITEXT:
        (root / f"wiki.{name}{suffix}").write_bytes(content)
    return root


def write_texts(root: Path, written: list[bytes]) -> Path:
    """Files in an order that is not theirs, beside what does not belong to the corpus."""
    root.mkdir(parents=True, exist_ok=True)
    for i, content in reversed(list(enumerate(written))):
        (root / f"{i}.txt").write_bytes(content)
    (root / "._0.txt").write_bytes(b"\xff")
    (root / "about.md").write_text("not text of the corpus")
    return root


def write_json(root: Path, rows: list[object], suffix: str = "") -> Path:
    root.mkdir(exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name in SPLITS:
        (root / f"{name}.jsonl{suffix}").write_bytes(PACKED[suffix](content))
    return root


def write_parquet(root: Path, rows: list[object], shards: int = 1, column: str = "text") -> Path:
    root.mkdir(exist_ok=True)
    for name in SPLITS:
        for i in range(shards):
            part = rows[i * len(rows) // shards : (i + 1) * len(rows) // shards]
            file = root / f"{name}-{i:05}-of-{shards:05}.parquet"
            pq.write_table(pa.table({column: pa.array(part, pa.string())}), file)
    return root


def alone(found: list[str], i: int) -> bool:
    """Is line i a heading of the first level between blank lines?"""
    around = [*found[:i][-1:], *found[i + 1 :][:1]]
    return found[i] in HEADINGS and not any(line.strip() for line in around)


@given(lines, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_articles_joined_are_the_lines_of_the_file(written, marked, ended, end):
    """Each line ends in one \\n, also the last, whatever the file has there."""
    content = MARK * marked + end.join(written).encode() + end.encode() * ended
    expected = content.removeprefix(MARK).decode().replace("\r\n", "\n").removesuffix("\n") + "\n"
    with TemporaryDirectory() as folder:
        if not any(line.strip() for line in written):
            with pytest.raises(ValueError, match=r"wiki\.train\.tokens: no text in it: "):
                contents(write_wikitext(Path(folder), content))
            return
        found = contents(write_wikitext(Path(folder), content))
    for split in SPLITS:
        assert "".join(found[split]) == expected


@given(lines, st.integers(1, 3))
def test_wikitext_of_the_hub_is_wikitext_as_published(written, shards):
    """A row a line, blank ones empty; there are some."""
    written = [*written, "", "a line"]
    rows = [f"{line}\n" if line.strip() else "" for line in written]
    content = "".join(row or "\n" for row in rows)
    with TemporaryDirectory() as folder:
        expected = contents(write_wikitext(Path(folder) / "published", content.encode()))
        found = contents(write_parquet(Path(folder) / "hub", rows, shards))
    assert found == expected


@given(texts.filter(lambda rows: all(row.strip() for row in rows)), st.integers(1, 3))
def test_other_parquet_has_a_document_a_row(written, shards):
    """Those of one line too: what has no blank rows is no WikiText."""
    with TemporaryDirectory() as folder:
        found = read(write_parquet(Path(folder), written, shards))
        held = [(d.name, d.text) for d in found.splits["validation"]()]
    assert [text for _, text in held] == written
    assert held[0][0].endswith(".parquet:1")


@pytest.mark.parametrize(
    ("rows", "column", "fault"),
    [
        (["a\nb", "c"], "content", "no Parquet with a column 'text'"),
        (["a\nb", None], "text", ":2: 'text' is None, no text"),
        (["a\nb", " "], "text", ":2: 'text' must not be empty"),
        (["", "", ""], "text", "no text in it"),
    ],
)
def test_faults_of_parquet_have_a_place(tmp_path, rows, column, fault):
    with pytest.raises(ValueError, match=rf"train-00000-of-00001.parquet.*{fault}"):
        contents(write_parquet(tmp_path, rows, column=column))


def test_parquet_is_whole(tmp_path):
    write_parquet(tmp_path, ["a\nb"])
    file = tmp_path / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no Parquet with a column 'text'"):
        contents(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-\*.parquet is missing"):
        read(tmp_path)


@given(lines)
def test_an_article_has_text_and_one_heading_of_the_first_level_which_opens_it(written):
    if not any(line.strip() for line in written):
        return
    with TemporaryDirectory() as folder:
        content = "".join(line + "\n" for line in written).encode()
        articles = contents(write_wikitext(Path(folder), content))["train"]
    for i, article in enumerate(articles):
        found = article.removesuffix("\n").split("\n")
        first = next(place for place, line in enumerate(found) if line.strip())
        assert first == 0 or i == 0  # blank lines belong to the article before them, if any
        assert found[first] in HEADINGS or i == 0
        assert not any(alone(found, place) for place in range(first + 1, len(found)))
    cuts = sum(alone(written, i) for i in range(len(written)))
    assert cuts <= len(articles) <= cuts + 1


@pytest.mark.parametrize("line", NO_HEADINGS)
def test_only_a_heading_of_the_first_level_cuts(tmp_path, line):
    content = "".join(f"{each}\n" for each in (" ", " = A = ", " ", "a", " ", line, " ", "b"))
    assert contents(write_wikitext(tmp_path, content.encode()))["test"] == [content]


def test_a_formula_on_a_line_of_its_own_is_no_heading(tmp_path):
    content = " \n = Constant k filter = \n \n with phase k \n = 1 / s and k = \n 1 . \n"
    assert contents(write_wikitext(tmp_path, content.encode()))["train"] == [content]


@pytest.mark.parametrize("suffix", [".tokens", ".raw"])
def test_wikitext_has_its_form_and_names_articles_by_their_line(tmp_path, suffix):
    source = read(write_wikitext(tmp_path, b" \n = A = \n\na\n\n = B = \n\n", suffix))
    assert source.layout == f"WikiText ({suffix[1:]})"
    assert list(source.splits) == list(SPLITS)
    names = [d.name for d in source.splits["validation"]()]
    assert names == [f"{tmp_path}/wiki.valid{suffix}:{line}" for line in (2, 6)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_real_articles_are_whole(shared_data, tmp_path, split):
    for name, real in zip(WIKITEXT, ("test", "valid", "test"), strict=True):
        content = (shared_data / "wikitext2_eval" / f"{real}.txt").read_bytes()
        (tmp_path / f"wiki.{name}.tokens").write_bytes(content)
    articles = [d.text for d in read(tmp_path).splits[split]()]
    file = tmp_path / f"wiki.{'valid' if split == 'validation' else split}.tokens"
    assert "".join(articles) == file.read_text(encoding="utf-8")
    assert len(articles) == 60  # as published
    for article in articles:
        heading = article.strip().partition("\n")[0].strip()
        assert re.fullmatch("= [^=].* =", heading)


@given(texts, st.booleans())
def test_a_folder_of_files_is_read_in_the_order_of_names(written, marked):
    """As they are, but for the line ends and a mark of their byte order."""
    written = [f"x{text}" for text in written]
    content = [MARK * marked + text.encode() for text in written]
    with TemporaryDirectory() as folder:
        found = contents(write_texts(Path(folder), content))
    lined = [text.replace("\r\n", "\n").replace("\r", "\n") for text in written]
    assert found == {"train": lined}


@pytest.mark.parametrize("held", [("train",), ("train", "test"), ("train", "validation"), SPLITS])
def test_folders_of_splits_are_read_as_they_are(tmp_path, held):
    written = {split: [f"{split} {i}".encode() for i in range(12)] for split in held}
    for split in held:
        write_texts(tmp_path / split, written[split])
    found = contents(tmp_path)
    assert list(found) == list(held)
    for split in held:
        assert sorted(found[split]) == sorted(text.decode() for text in written[split])
        assert found[split][:3] == [f"{split} 0", f"{split} 1", f"{split} 10"]  # by code point


@given(texts)
def test_json_lines_are_read_as_they_are_however_packed(written):
    for suffix in PACKED:
        with TemporaryDirectory() as folder:
            rows = [{"id": 0, "text": text} for text in written]
            assert contents(write_json(Path(folder), rows, suffix)) == dict.fromkeys(
                SPLITS, written
            )


@pytest.mark.parametrize("missing", [(), ("validation",), ("test",), ("validation", "test")])
def test_json_lines_may_lack_what_is_held_out_later(tmp_path, missing):
    write_json(tmp_path, [{"text": "a"}])
    for split in missing:
        (tmp_path / f"{split}.jsonl").unlink()
    assert list(contents(tmp_path)) == [split for split in SPLITS if split not in missing]


def test_the_real_novels_are_whole(shared_data, tmp_path):
    with tarfile.open(shared_data / "english_novels" / "100_english_novels.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    novels = list(read(tmp_path / "corpus").splits["train"]())
    assert len(novels) == 100
    assert [novel.name for novel in novels] == sorted(novel.name for novel in novels)
    for novel in novels:
        raw = (tmp_path / "corpus" / novel.name).read_bytes()
        assert raw.startswith(MARK)
        raw = raw.removeprefix(MARK).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert novel.text.encode() == raw


@pytest.mark.parametrize("write", [write_wikitext, write_texts, write_json])
def test_a_split_can_be_read_again(tmp_path, write):
    content = {write_wikitext: b"a\n", write_texts: [b"a", b"b"], write_json: [{"text": "a"}]}
    train = read(write(tmp_path, content[write])).splits["train"]
    assert list(train()) == list(train()) != []


def test_a_document_is_read_only_when_it_is_asked_for(tmp_path):
    write_json(tmp_path / "json", [{"text": "good"}, {"bad": 1}])
    write_texts(tmp_path / "texts", [b"good", b"\xff"])
    write_wikitext(tmp_path / "wiki", b" = A = \n\ngood\n\n = B = \n\n\xff\n")
    for folder in ("json", "texts", "wiki"):
        documents = read(tmp_path / folder).splits["train"]()
        assert "good" in next(documents).text
        with pytest.raises(ValueError, match=f"{tmp_path / folder}/"):
            next(documents)


@given(st.text(), st.text(), st.booleans())
def test_the_first_byte_that_is_not_utf8_is_named(before, after, marked):
    start = MARK * marked + before.encode()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "0.txt"
        file.write_bytes(start + b"\xff" + after.encode())
        with pytest.raises(
            ValueError, match=rf"0\.txt: not UTF-8 text \(byte {len(start)}\): conv"
        ):
            text_of(file)


@pytest.mark.parametrize("content", [b"", MARK, b" \n\t\r\n"])
def test_a_file_without_text_is_refused_by_name(tmp_path, content):
    with pytest.raises(ValueError, match=r"/0\.txt: no text in it: .*leave it out"):
        contents(write_texts(tmp_path / "texts", [content, b"text"]))
    with pytest.raises(ValueError, match=r"wiki\.train\.raw: no text in it: .*leave it out"):
        contents(write_wikitext(tmp_path / "wiki", content, ".raw"))


@pytest.mark.parametrize("suffix", PACKED)
def test_json_lines_without_a_row_are_refused_by_name(tmp_path, suffix):
    with pytest.raises(ValueError, match=rf"train\.jsonl{suffix}: no rows in it: .*leave it out"):
        contents(write_json(tmp_path, [], suffix))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"label": 1}, r"no 'text', only \['label'\]"),
        ({"text": ""}, "'text' must be a text that is not empty"),
        ({"text": ["a"]}, "'text' must be a text that is not empty"),
        ({"text": "\ud800"}, "'text' has no UTF-8 form"),
        (["a"], "expected a JSON object"),
    ],
)
@pytest.mark.parametrize("suffix", PACKED)
def test_a_malformed_row_is_refused_by_file_and_line(tmp_path, row, fault, suffix):
    write_json(tmp_path, [{"text": "good"}, row], suffix)
    file = re.escape(str(tmp_path / f"train.jsonl{suffix}"))
    with pytest.raises(ValueError, match=f"^{file}:2: {fault}"):
        contents(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-12], lambda data: b"no such form" + data])
def test_a_broken_packed_file_is_refused_by_name(tmp_path, suffix, spoil):
    write_json(tmp_path, [{"text": "good"}] * 1000, suffix)
    file = tmp_path / f"train.jsonl{suffix}"
    file.write_bytes(spoil(file.read_bytes()))
    fault = rf"^{re.escape(str(file))}:\d+: cannot be unpacked .*: fetch the file again"
    with pytest.raises(ValueError, match=fault):
        contents(tmp_path)


def refused(folder: Path, error: type[Exception], *words: str) -> None:
    """The error has these words, the folder and the layouts."""
    with pytest.raises(error) as raised:
        read(folder)
    for word in (*words, str(folder), "WikiText as published", "text files", "JSON lines"):
        assert word in str(raised.value)


@pytest.mark.parametrize("suffix", [".tokens", ".raw"])
@pytest.mark.parametrize("name", WIKITEXT)
def test_a_missing_file_of_wikitext_is_named(tmp_path, suffix, name):
    write_wikitext(tmp_path, b"a\n", suffix)
    (tmp_path / f"wiki.{name}{suffix}").unlink()
    refused(tmp_path, FileNotFoundError, f"wiki.{name}{suffix} is missing", "holds wiki.")


def test_a_missing_file_of_json_lines_is_named(tmp_path):
    write_json(tmp_path, [{"text": "a"}])
    (tmp_path / "train.jsonl").unlink()
    refused(tmp_path, FileNotFoundError, "train.jsonl is missing")


@pytest.mark.parametrize("name", ["valid", "val", "dev"])
def test_validation_goes_by_its_other_names_too(tmp_path, name):
    write_parquet(tmp_path / "parquet", ["a", "b"])
    for split in SPLITS:
        write_texts(tmp_path / "folders" / split, [split.encode()])
    expected = {form: contents(tmp_path / form) for form in ("parquet", "folders")}
    (tmp_path / "folders" / "validation").rename(tmp_path / "folders" / name)
    shard = tmp_path / "parquet" / "validation-00000-of-00001.parquet"
    shard.rename(shard.with_name(f"{name}.parquet"))
    assert {form: contents(tmp_path / form) for form in expected} == expected


@pytest.mark.parametrize("empty", ["train", "validation", "test"])
def test_a_split_folder_without_texts_is_named(tmp_path, empty):
    for split in SPLITS:
        write_texts(tmp_path / split, [b"a"] * (split != empty))
    refused(tmp_path, FileNotFoundError, f"/{empty}/*.txt is missing", "holds test/, train/")


def test_splits_without_training_texts_are_refused(tmp_path):
    write_texts(tmp_path / "test", [b"a"])
    refused(tmp_path, FileNotFoundError, "/train/*.txt is missing")


def test_a_text_beside_folders_of_splits_is_refused(tmp_path):
    write_texts(write_texts(tmp_path, [b"a"]) / "train", [b"a"])
    with pytest.raises(ValueError, match=r"0\.txt lies beside train/: move it"):
        read(tmp_path)


def test_a_folder_without_a_layout_is_refused_with_what_it_holds(tmp_path):
    refused(tmp_path, FileNotFoundError, "holds nothing")
    (tmp_path / "train").mkdir()
    (tmp_path / "corpus.jsonl").touch()
    (tmp_path / "wiki.tar.gz").touch()
    held = "corpus.jsonl, train/, wiki.tar.gz (extract wiki.tar.gz first)"
    refused(tmp_path, FileNotFoundError, held)
    refused(tmp_path / "nowhere", FileNotFoundError, "is not there")


def test_two_layouts_side_by_side_are_refused(tmp_path):
    write_json(write_texts(tmp_path / "a", [b"a"]), [{"text": "a"}])
    refused(tmp_path / "a", ValueError, "text files and JSON lines side by side")
    write_wikitext(write_wikitext(tmp_path / "b", b"a"), b"a", ".raw")
    refused(tmp_path / "b", ValueError, "WikiText (tokens) and WikiText (raw) side by side")


def test_an_archive_or_a_file_in_place_of_a_folder_is_refused(tmp_path):
    archive = tmp_path / "novels.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(write_texts(tmp_path / "corpus", [b"a"]), "corpus")
    refused(archive, ValueError, "is an archive: extract it")
    refused(tmp_path / "corpus" / "0.txt", ValueError, "is a file: give the folder")


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (" a two @-@ part story ( 1 @,@ 000 pages ) . ", "a two-part story (1,000 pages)."),
        (" 0 @.@ 5 % of $ 5 or £ 6 ; why ? ", "0.5% of $5 or £6; why?"),
        (' " Yes ! " , it said : " no " ... ', '"Yes!", it said: "no"...'),
        (" isn 't she Tom 's ? I 'm , they 've ", "isn't she Tom's? I'm, they've"),
        (" the ' tide ' of [ <unk> ] ", "the ' tide ' of [<unk>]"),
        (" from 1990 \u2013 92 , A \u2013 B ", "from 1990\u201392, A \u2013 B"),
        (" = = The <unk> = = \n \n Text . \n", "The <unk>\n\nText.\n"),
        (' " one \n two " ', '" one\ntwo "'),
        ("It isn't, is it?\n", "It isn't, is it?\n"),
    ],
)
def test_wikitext_becomes_natural_text(published, expected):
    assert natural(published) == natural(expected) == expected


words_of_wikitext = st.sampled_from(["word", "<unk>", "@-@", "@,@", '"', "(", ")", ",", "'s", "5"])


@given(st.lists(st.lists(words_of_wikitext, min_size=1, max_size=12), min_size=1, max_size=4))
def test_natural_text_has_the_words_and_lines_of_wikitext(rows):
    published = "".join(f" {' '.join(row)} \n" for row in rows)
    found, words = natural(published), re.compile(r"\w+|<unk>|\n")
    assert words.findall(found) == words.findall(published)


def test_the_real_articles_become_natural_text(shared_data):
    published = text_of(shared_data / "wikitext2_eval" / "valid.txt")
    found = natural(published)
    assert found.count("\n") == published.count("\n")
    assert found.count("<unk>") == published.count("<unk>") > 10_000
    assert not re.search(r" @.@ | [,.;]|\( | 's\b|^ |^= ", found, re.MULTILINE)
    letters = re.compile(r"\w")
    assert letters.findall(found) == letters.findall(published)
