"""Tokens: the corpus exactly, made once, kept whole, mapped from disk, in rows that tile it."""

import errno
import io
import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from leapformer.tasks.files import SPLITS
from leapformer.tasks.lm import prepare as preparing
from leapformer.tasks.lm.data import Collator, Rows, Tokens, load
from leapformer.tasks.lm.prepare import prepare
from leapformer.tasks.lm.recipes import LMRecipe
from leapformer.tasks.source import Document, Source

COUNTS = ("documents", "tokens", "bytes", "words")
texts = st.lists(
    st.text(min_size=1) | st.sampled_from(["<eos>", "a <eos>\n", "two words"]), min_size=1
)


def write_json(root: Path, written: dict[str, list[str]]) -> Path:
    root.mkdir(exist_ok=True)
    for split, rows in written.items():
        content = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (root / f"{split}.jsonl").write_text(content)
    return root


def write_texts(root: Path, numbers: range) -> Path:
    """A file a number, with its number in words and another length each."""
    root.mkdir(parents=True, exist_ok=True)
    for i in reversed(numbers):
        (root / f"{i}.txt").write_text(f"novel {i}\n" + "and on " * i)
    return root


def documents(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of a split; each must end in the one end there is in it."""
    for part in tokens.parts:
        assert np.flatnonzero(part == tokenizer.eos_token_id).tolist() == [len(part) - 1]
    return [tokenizer.decode(part[:-1].tolist()) for part in tokens.parts]


def prepared(folder: Path) -> dict[str, list[str]]:
    splits, tokenizer, _ = load(folder)
    return {name: documents(tokens, tokenizer) for name, tokens in splits.items()}


@settings(max_examples=10)
@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, texts)), st.sampled_from(["bytes", "bpe"]))
def test_tokens_are_the_corpus_exactly_and_counted(written, kind):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        source, size = write_json(root / "source", written), 300 if kind == "bpe" else None
        about = prepare(source, root / "made", kind, size)
        splits, tokenizer, again = load(root / "made")
        assert again == about
        assert about["vocab_size"] == len(tokenizer)
        assert (about["layout"], about["vocabulary"]) == ("JSON lines", kind)
        for name, tokens in splits.items():
            assert documents(tokens, tokenizer) == written[name]
            assert tokens.counts() == {key: about["splits"][name][key] for key in COUNTS}
            assert tokens.counts() == {
                "documents": len(written[name]),
                "tokens": sum(map(len, tokens.parts)),
                "bytes": sum(len(text.encode()) for text in written[name]),
                "words": sum(len(text.split()) for text in written[name]),
            }
        prepare(source, root / "again", kind, size)
        assert load(root / "again")[2] == about


def test_words_have_an_end_for_each_line_and_each_document(tmp_path):
    source = write_json(
        tmp_path / "source", {split: ["a b\nc\n", "a\n\na <eos>"] for split in SPLITS}
    )
    splits, tokenizer, _ = prepared_words(source, tmp_path / "made")
    found = " ".join(tokenizer.convert_ids_to_tokens(splits["test"][:].tolist()))
    assert found == "a b <eos> c <eos> <eos> a <eos> <eos> a <unk> <eos>"


def prepared_words(source: Path, out: Path) -> tuple:
    prepare(source, out, "words")
    return load(out)


def test_the_checksum_is_of_every_byte_and_of_where_documents_end(tmp_path):
    written = {"train": ["first", "second"], "validation": ["first"], "test": ["second"]}

    def checksum(name: str, train: list[str]) -> str:
        source = write_json(tmp_path / f"source-{name}", {**written, "train": train})
        about = prepare(source, tmp_path / name, "bytes")
        return about["splits"]["train"]["sha256"]

    first = checksum("a", written["train"])
    assert checksum("b", written["train"]) == first
    others = [["First", "second"], ["first", "seconD"], ["firsts", "econd"], ["firstsecond"]]
    others += [["second", "first"], ["first", "second", "x"], ["fir t", "second"]]
    sums = [checksum(f"o{i}", train) for i, train in enumerate(others)]
    assert len({first, *sums}) == 1 + len(others)


@pytest.mark.parametrize("numbers", [range(1, 11), range(11)])
def test_splits_that_are_missing_are_whole_documents_of_their_own(tmp_path, numbers):
    source = write_texts(tmp_path / "source", numbers)
    whole = {file.read_text() for file in source.iterdir()}
    seen = []
    for seed in (0, 0, 1):
        out = tmp_path / f"made{len(seen)}"
        about = prepare(source, out, "bytes", held_out=2, seed=seed)
        found = prepared(out)
        assert [len(found[name]) for name in SPLITS] == [len(whole) - 4, 2, 2]
        every = [text for name in SPLITS for text in found[name]]
        assert set(every) == whole
        assert len(every) == len(whole)
        in_order = [text for text in every if text in set(found["train"])]
        assert found["train"] == in_order
        seen.append((found, about))
    assert seen[0] == seen[1]
    assert set(seen[0][0]["test"]) != set(seen[2][0]["test"])


def test_the_documents_that_are_held_out_are_the_same_on_every_machine(tmp_path):
    prepare(write_texts(tmp_path / "source", range(10)), tmp_path / "made", "bytes", held_out=2)
    found = prepared(tmp_path / "made")
    held = {name: [text.split()[1] for text in found[name]] for name in ("validation", "test")}
    assert held == {"validation": ["4", "6"], "test": ["2", "7"]}


def test_a_split_that_is_there_stays_as_it_is(tmp_path):
    write_texts(tmp_path / "source" / "train", range(8))
    write_texts(tmp_path / "source" / "test", range(100, 103))
    prepare(tmp_path / "source", tmp_path / "made", "bytes", held_out=3)
    found = prepared(tmp_path / "made")
    assert {text.split()[1] for text in found["test"]} == {"100", "101", "102"}
    numbers = {int(text.split()[1]) for name in SPLITS[:2] for text in found[name]}
    assert numbers == set(range(8))
    assert (len(found["train"]), len(found["validation"])) == (5, 3)


@pytest.mark.parametrize("count", [0, -1, 5, 6])
def test_holding_out_nothing_or_everything_is_refused(tmp_path, count):
    source = write_texts(tmp_path / "source", range(10))
    with pytest.raises(ValueError, match=f"10 documents and {count} are .*give another --held-out"):
        prepare(source, tmp_path / "kept" / "made", "bytes", held_out=count)
    assert not any((tmp_path / "kept").iterdir())


def test_the_tokenizer_is_trained_on_the_training_split_alone(tmp_path):
    written = {"train": ["a b"], "validation": ["a c"], "test": ["a d"]}
    tokenizer = prepared_words(write_json(tmp_path / "source", written), tmp_path / "made")[1]
    assert set(tokenizer.get_vocab()) == {"<eos>", "<unk>", "a", "b"}


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe", "words"])
def test_documents_are_read_one_at_a_time(tmp_path, monkeypatch, vocabulary):
    alive: weakref.WeakSet[Document] = weakref.WeakSet()
    most = []

    def reader():
        for i in range(300):
            document = Document(str(i), f"novel {i} " + "and on " * 10)
            alive.add(document)
            most.append(len(alive))
            yield document

    monkeypatch.setattr(preparing, "read", lambda source: Source("novels", {"train": reader}))
    prepare(tmp_path, tmp_path / "made", vocabulary, 300 if vocabulary == "bpe" else None)
    assert len(load(tmp_path / "made")[0]["train"].parts) == 290
    assert len(most) >= 4 * 300
    assert max(most) <= 3  # it, the one before in the split, and the one before in the corpus


def test_what_is_there_is_not_written_over(tmp_path):
    source = write_texts(tmp_path / "source", range(11))
    (tmp_path / "made").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "made", tmp_path / "file"):
        with pytest.raises(FileExistsError, match=f"{out} is there already.*another --out"):
            prepare(source, out, "bytes")


def test_a_place_that_cannot_be_written_is_refused_before_a_document_is_read(tmp_path, monkeypatch):
    unread = Source("novels", {"train": lambda: pytest.fail("read")})
    monkeypatch.setattr(preparing, "read", lambda source: unread)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="choose another folder with --out"):
        prepare(tmp_path, tmp_path / "file" / "made", "bytes")


@pytest.mark.parametrize("split", SPLITS)
def test_an_unreadable_document_leaves_nothing(tmp_path, split):
    for name in SPLITS:
        write_texts(tmp_path / "source" / name, range(3))
    file = tmp_path / "source" / split / "1.txt"
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: not UTF-8"):
        prepare(tmp_path / "source", tmp_path / "kept" / "made", "bytes")
    assert list((tmp_path / "kept").iterdir()) == []


STEPS = [
    (pa, "OSFile"),
    (DatasetDict, "save_to_disk"),
    (PreTrainedTokenizerFast, "save_pretrained"),
    (preparing, "write_json"),
]


@pytest.mark.parametrize(("place", "step"), STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, place, step, late):
    done = getattr(place, step)

    def full(*arguments):
        if late:
            done(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, step, full)
    with pytest.raises(OSError, match="No space left"):
        prepare(write_texts(tmp_path / "source", range(11)), tmp_path / "kept" / "made", "bytes")
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(("place", "step"), STEPS)
def test_what_a_kill_leaves_is_never_taken_for_tokens(tmp_path, monkeypatch, place, step):
    source, out = write_texts(tmp_path / "source", range(11)), tmp_path / "kept" / "made"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, step, killed)
        patch.setattr(shutil, "rmtree", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, out, "bytes")
    (left,) = (tmp_path / "kept").iterdir()
    assert left.name.startswith(".made-")
    for folder in (out, left, left / "data"):
        with pytest.raises(FileNotFoundError, match="leapformer lm prepare --source"):
            load(folder)
    prepare(source, out, "bytes")
    assert len(load(out)[0]["train"].parts) == 1


def test_tokens_appear_whole_at_once(tmp_path, monkeypatch):
    source, out, moved = write_texts(tmp_path / "source", range(11)), tmp_path / "made", []
    move = Path.replace

    def watched(self: Path, target: Path) -> Path:
        if target == out:
            assert not out.exists()
            moved.append(load(self)[2])
        return move(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    about = prepare(source, out, "bytes")
    assert moved == [about]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tokens of words, to be copied before they are damaged."""
    folder = tmp_path_factory.mktemp("kept")
    prepare(write_texts(folder / "source", range(14)), folder / "made", "words")
    return folder / "made"


@pytest.fixture
def copy(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copy"))


ANEW = "delete it and make it anew"


def test_tokens_without_a_description_are_none(copy, tmp_path):
    (copy / "about.json").unlink()
    for folder in (copy, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"no tokens in {folder}: leapformer lm prep"):
            load(folder)


@pytest.mark.parametrize("about", ["", '{"splits": {', "[]", "{}", '{"splits": {}}', "7", "null"])
def test_a_damaged_description_is_refused(copy, about):
    (copy / "about.json").write_text(about)
    with pytest.raises(ValueError, match="delete it"):
        load(copy)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("key", COUNTS)
def test_another_count_is_refused(copy, split, key):
    about = json.loads((copy / "about.json").read_text())
    about["splits"][split][key] += 1
    (copy / "about.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


@pytest.mark.parametrize("key", ["tokenizer", "vocab_size"])
def test_another_tokenizer_than_described_is_refused(copy, key):
    about = json.loads((copy / "about.json").read_text())
    (copy / "about.json").write_text(json.dumps({**about, key: 7}))
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_changed_tokenizer_is_refused(copy, name, content):
    file = copy / "tokenizer" / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


def test_a_word_that_was_renamed_is_noticed(copy):
    file = copy / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("novel", "lovel"))
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


def ends(stream: bytes) -> list[int]:
    """Where the schema and each batch of a stream end: cut there, it is a shorter stream."""
    reader, part = pa.ipc.open_stream(stream), io.BytesIO()
    writer = pa.ipc.new_stream(part, reader.schema)
    found = [part.tell()]
    for batch in reader:
        writer.write_batch(batch)
        found.append(part.tell())
    assert stream.startswith(part.getvalue())
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_tokens_cut_anywhere_are_never_a_shorter_split(copy, split):
    (file,) = (copy / split).glob("*.arrow")
    whole = file.read_bytes()
    places = ends(whole)
    for cut in {0, 7, *places[:-1], *(place + 9 for place in places[:-1]), places[-1] - 1}:
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=ANEW):
            load(copy)
    file.unlink()
    with pytest.raises(ValueError, match=ANEW):
        load(copy)
    shutil.rmtree(copy / split)
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


def test_tokens_are_mapped_from_disk_and_not_copied(tmp_path):
    text = "word " * 200_000
    written = {"train": [text, "a", text], "validation": ["a"], "test": ["a"]}
    prepare(write_json(tmp_path / "source", written), tmp_path / "made", "words")
    before = pa.total_allocated_bytes()
    tokens = load(tmp_path / "made")[0]["train"]
    assert len(tokens) == 400_001 + 3
    assert pa.total_allocated_bytes() - before < 100_000
    for part in tokens.parts:
        assert part.dtype == np.uint16
        assert not part.flags.owndata
        assert not part.flags.writeable


@pytest.mark.parametrize(("more", "dtype"), [(0, np.uint16), (1, np.uint32)])
def test_tokens_have_the_smallest_type_that_holds_the_last_id(tmp_path, more, dtype):
    train = " ".join(f"w{i:05}" for i in range(2**16 - 2 + more))
    written = {"train": [train], "validation": ["w00000"], "test": [train[-6:]]}
    splits, tokenizer, about = prepared_words(
        write_json(tmp_path / "source", written), tmp_path / "made"
    )
    assert about["vocab_size"] == len(tokenizer) == 2**16 + more
    assert splits["train"][:].tolist() == [*range(2, len(tokenizer)), 0]
    assert splits["test"][:].tolist() == [len(tokenizer) - 1, 0]
    assert {tokens.parts[0].dtype for tokens in splits.values()} == {np.dtype(dtype)}


@st.composite
def many(draw) -> Tokens:
    """Documents of one to nine tokens; the ids are their places."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    kind = draw(st.sampled_from([np.uint16, np.uint32, np.int64]))
    ends = np.cumsum(lengths)
    parts = [
        np.arange(end - size, end, dtype=kind) for size, end in zip(lengths, ends, strict=True)
    ]
    return Tokens.join(parts, [7 * size for size in lengths], [3 * size - 1 for size in lengths])


@settings(max_examples=200)
@given(many(), st.data())
def test_a_slice_is_the_slice_of_all_documents_end_to_end(tokens, draw):
    places = st.none() | st.integers(-len(tokens) - 2, len(tokens) + 2)
    begin, stop = draw.draw(places), draw.draw(places)
    found = tokens[begin:stop]
    assert found.dtype == np.int64
    assert found.tolist() == list(range(len(tokens)))[begin:stop]
    assert len(tokens) == sum(map(len, tokens.parts))


def test_tokens_are_read_one_after_the_other():
    tokens = Tokens.join([np.arange(5)], 1, 1)
    for place in (slice(None, None, 2), slice(None, None, -1)):
        with pytest.raises(ValueError, match="the step is"):
            tokens[place]


def test_sizes_are_those_of_each_document():
    parts = [np.arange(2), np.arange(3)]
    with pytest.raises(ValueError, match="reshape"):
        Tokens.join(parts, 5, 5)
    assert Tokens.join(parts, [1, 2], [3, 4]).counts() == {
        "documents": 2,
        "tokens": 5,
        "bytes": 3,
        "words": 7,
    }


@settings(max_examples=200)
@given(many(), st.data())
def test_the_first_tokens_are_whole_documents_with_their_exact_sizes(tokens, draw):
    count = draw.draw(st.none() | st.integers(0, len(tokens) + 2))
    first = tokens.first(count)
    kept = len(first.parts)
    assert first[:].tolist() == list(range(len(first)))
    assert len(first) in tokens.starts
    assert (first.bytes, first.words) == (7 * len(first), 3 * len(first) - kept)
    if count is None or count >= len(tokens):
        assert len(first) == len(tokens)
    else:
        assert len(first) >= count
        assert not kept or tokens.starts[kept - 1] < count  # and not a document more


def test_the_first_documents_have_the_sizes_of_their_texts(tmp_path):
    test = ["é é é\n", "x" * 50, "a b c d", "\u2028"]
    written = {"train": ["a"], "validation": ["a"], "test": test}
    prepare(write_json(tmp_path / "source", written), tmp_path / "made", "bytes")
    tokens = load(tmp_path / "made")[0]["test"]
    for kept in range(1, 5):
        first = tokens.first(int(tokens.starts[kept]))
        assert first.counts() == {
            "documents": kept,
            "tokens": sum(len(text.encode()) + 1 for text in test[:kept]),
            "bytes": sum(len(text.encode()) for text in test[:kept]),
            "words": sum(len(text.split()) for text in test[:kept]),
        }


@settings(max_examples=200)
@given(many(), st.integers(1, 12))
def test_rows_tile_the_tokens_and_know_where_documents_begin(tokens, length):
    if length > len(tokens):
        with pytest.raises(ValueError, match=r"fewer than a row of .*give a smaller"):
            Rows(tokens, length)
        return
    rows = Rows(tokens, length)
    ids = [row["input_ids"] for row in map(rows.__getitem__, range(len(rows)))]
    assert all(row.dtype == torch.int64 and row.shape == (length,) for row in ids)
    assert torch.cat(ids).tolist() == list(range(len(tokens) // length * length))
    documents = set(tokens.starts[:-1].tolist())
    for i in range(len(rows)):
        begin = i * length
        inside = [place for place in range(1, length) if begin + place in documents]
        assert rows[i]["starts"] == [0, *inside]


@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 400))
def test_a_limit_takes_rows_evenly_from_the_whole_split(whole, length, limit):
    tokens = Tokens.join([np.arange(whole * length + length - 1)], 1, 1)
    rows = Rows(tokens, length, limit)
    assert len(rows) == min(limit, whole)
    begins = [int(rows[i]["input_ids"][0]) for i in range(len(rows))]
    assert begins[0] == 0
    gaps = np.diff([*begins, whole * length]) // length
    assert set(begins) <= set(range(0, whole * length, length))
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


JOINED = LMRecipe(preset="test")
APART = replace(JOINED, documents="apart")


@st.composite
def batches(draw) -> list[dict]:
    tokens, length = draw(many()), draw(st.integers(1, 8))
    if len(tokens) < length:
        length = len(tokens)
    rows = Rows(tokens, length)
    return [rows[i] for i in draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))]


@given(batches())
def test_joined_rows_predict_all_but_their_first_tokens(rows):
    batch = Collator(JOINED)(rows)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [row["input_ids"].tolist() for row in rows]
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][:, 0] == -100).all()
    assert batch["labels"][:, 1:].equal(batch["input_ids"][:, 1:])


@given(batches())
def test_rows_apart_are_one_and_predict_all_but_the_first_tokens_of_documents(rows):
    batch = Collator(APART)(rows)
    ids, labels, bounds = batch["input_ids"], batch["labels"], batch["cu_seq_lens_q"]
    assert set(batch) == {"input_ids", "labels", "cu_seq_lens_q"}
    assert ids.flatten().equal(torch.cat([row["input_ids"] for row in rows]))
    assert ids.shape == labels.shape == (1, ids.numel())
    assert bounds.dtype == torch.int32
    assert (bounds[0], bounds[-1]) == (0, ids.numel())
    assert (bounds.diff() > 0).all()
    length = ids.numel() // len(rows)
    expected = {i * length + start for i, row in enumerate(rows) for start in row["starts"]}
    assert set(bounds[:-1].tolist()) == expected
    assert set((labels[0] == -100).nonzero().flatten().tolist()) == expected
    assert (labels[labels != -100]).equal(ids[labels != -100])


def test_collating_does_not_change_the_rows():
    rows = [Rows(Tokens.join([np.arange(6)], 1, 1), 3)[i] for i in range(2)]
    for recipe in (JOINED, APART):
        Collator(recipe)(rows)
        assert [row["input_ids"].tolist() for row in rows] == [[0, 1, 2], [3, 4, 5]]


def test_the_real_articles_come_back_from_their_tokens(shared_data, tmp_path):
    (tmp_path / "source").mkdir()
    valid = (shared_data / "wikitext2_eval" / "valid.txt").read_text(encoding="utf-8")
    for name in ("train", "valid", "test"):
        (tmp_path / "source" / f"wiki.{name}.tokens").write_text(valid[:60_000], encoding="utf-8")
    prepare(tmp_path / "source", tmp_path / "made", "bpe", 512)
    found = prepared(tmp_path / "made")
    assert "".join(found["test"]) == valid[:60_000].removesuffix("\n") + "\n"
    assert len(found["test"]) > 1
