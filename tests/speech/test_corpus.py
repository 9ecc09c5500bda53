"""Corpora as their users have them: read exactly, by layout, every fault named by file and line."""

import csv
import json
import re
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from leapformer.tasks.files import SPLITS
from leapformer.tasks.source import Source
from leapformer.tasks.speech.corpus import read, read_splits
from leapformer.tasks.speech.tables import write_manifest
from leapformer.tasks.speech.utterance import Utterance

MUST_C = {"train": "train", "validation": "dev", "test": "tst-COMMON"}
COVOST = {"train": "train", "validation": "dev", "test": "test"}
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t")).map(str.strip)


def wav(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(1600), 16_000)
    return path


def must_c(root: Path, rows: list[tuple], pair: str = "en-de") -> Path:
    """Rows of (talk, offset, duration, transcript, translation), the same in each split."""
    for published in MUST_C.values():
        text = root / pair / "data" / published / "txt"
        text.mkdir(parents=True)
        segments = [
            f"- {{duration: {duration}, offset: {offset}, rW: 7, wav: {talk}.wav}}\n"
            for talk, offset, duration, *_ in rows
        ]
        (text / f"{published}.yaml").write_text("".join(segments))
        for i, language in enumerate(pair.split("-")):
            lines = "".join(row[3 + i] + "\n" for row in rows)
            (text / f"{published}.{language}").write_bytes(lines.encode())
        for talk, *_ in rows:
            wav(text.parent / "wav" / f"{talk}.wav")
    return root


def covost(root: Path, rows: list[tuple], pair: str = "fr_en") -> Path:
    """Rows of (clip, transcript, translation) as get_covost_splits.py writes them, beside Common
    Voice's own tables."""
    root.mkdir(exist_ok=True)
    for split in COVOST.values():
        cells = [("path", "sentence", "translation", "client_id"), *((*row, "7") for row in rows)]
        how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "escapechar": "\\"}
        table = root / f"covost_v2.{pair}.{split}.tsv"
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, **how, lineterminator="\n").writerows(cells)
        (root / f"{split}.tsv").write_text("client_id\tpath\tsentence\tup_votes\n")
    for clip, *_ in rows:
        wav(root / "clips" / clip)
    return root


def manifest(root: Path, table: str = "audio\ttranscript\ttranslation\na.wav\tone\teins\n") -> Path:
    root.mkdir(exist_ok=True)
    for split in SPLITS:
        (root / f"{split}.tsv").write_bytes(table.encode())
    wav(root / "a.wav")
    return root


def found(root: Path, split: str = "train", pair: str | None = None) -> list[Utterance]:
    return list(read(root, pair).splits[split]())


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["ted_1", "ted_22"]),
        st.floats(0, 1e4).map(lambda x: round(x, 6)),
        st.floats(0, 60).map(lambda x: round(x, 6)),
        LINE,
        LINE,
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=10)
@given(ROWS)
def test_must_c_is_read_line_by_line(rows):
    with TemporaryDirectory() as folder:
        root = must_c(Path(folder), rows)
        source = read(root)
        assert source.layout == "MuST-C en-de"
        with chdir(root / "en-de"):
            assert read(Path()).layout == "MuST-C en-de"
        assert read(root / "en-de").splits.keys() == source.splits.keys() == set(SPLITS)
        for split, published in MUST_C.items():
            utterances = list(source.splits[split]())
            talks = [row[0] for row in rows]
            for i, (each, row) in enumerate(zip(utterances, rows, strict=True)):
                audio = root / "en-de" / "data" / published / "wav" / f"{row[0]}.wav"
                name = f"{row[0]}_{talks[:i].count(row[0])}"
                assert each == Utterance(name, audio, *row[1:])


def test_yaml_may_be_written_otherwise(tmp_path):
    must_c(tmp_path, [("ted_1", 1.5, 2.0, "one", "eins"), ("ted_1", 4.0, 0.5, "two", "zwei")])
    expected = found(tmp_path)
    table = tmp_path / "en-de" / "data" / "train" / "txt" / "train.yaml"
    table.write_text(
        "# segments\n-\n  wav: 'ted_1.wav'\n  offset: \"1.5\"\n  duration: 2.0\n"
        "- {wav: ted_1.wav,\n   offset: 4.0, duration: 5.0e-1}\n"
    )
    assert found(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (
            "- {duration: 1, offset: 0, wav: ted_1.wav}\n- {duration: 1}}\n",
            2,
            "not YAML",
        ),
        ("- {duration: 1, offset: 0, wav: ted_1.wav}\n- {duration: 1\n", 3, "not YAML"),
        ("- {duration: 1, offset: 0, wav: ted_1.wav}\n- ted_1.wav\n", 2, "expected a list of"),
        ("- {duration: 1, offset: [0], wav: ted_1.wav}\n", 1, "expected {duration"),
        ("- {duration: 1, offset: 0}\n", 1, "no 'wav'"),
        (
            "\n- {duration: x, offset: 0, wav: ted_1.wav}\n",
            2,
            "duration is 'x'.* seconds, 0 or more",
        ),
        ("- {duration: 1, offset: -1, wav: ted_1.wav}\n", 1, "offset is '-1'"),
        ("- {duration: .nan, offset: 0, wav: ted_1.wav}\n", 1, "duration is '.nan'"),
        ("- {duration: nan, offset: 0, wav: ted_1.wav}\n", 1, "duration is 'nan'"),
        ("- {duration: 1, offset: 0, wav: ted_9.wav}\n", 1, "audio file .*ted_9.wav is missing"),
        ("- {duration: 1, offset: &a 0, wav: *a}\n", 1, "expected {duration"),
        ("- {duration: 1, offset: 0, wav: !!python/object/apply:os.getcwd []}\n", 1, "expected {"),
    ],
)
def test_a_faulty_segment_is_named(tmp_path, content, line, message):
    must_c(tmp_path, [("ted_1", 0, 1, "one", "eins")] * content.count("- "))
    table = tmp_path / "en-de" / "data" / "train" / "txt" / "train.yaml"
    table.write_text(content)
    with pytest.raises(
        (ValueError, OSError), match=f"^{re.escape(str(table))}:{line}: .*{message}"
    ):
        found(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    must_c(tmp_path, [("ted_1", 0, 1, "one", "eins")])
    text = tmp_path / "en-de" / "data" / "train" / "txt"
    (text / "train.yaml").write_bytes(b"- {wav: \xff}\n")
    with pytest.raises(ValueError, match=r"train.yaml:1: not YAML"):
        found(tmp_path)
    (text / "train.de").write_bytes(b"\xff\n")
    (text / "train.yaml").write_text("- {duration: 1, offset: 0, wav: ted_1.wav}\n")
    with pytest.raises(ValueError, match=r"train.de:1: not UTF-8"):
        found(tmp_path)


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("content", ["", "one\n", "one\ntwo\nthree\n", "one\ntwo\n\n"])
def test_texts_of_another_number_than_segments_are_refused(tmp_path, language, content):
    must_c(tmp_path, [("ted_1", 0, 1, "one", "eins")] * 2)
    file = tmp_path / "en-de" / "data" / "train" / "txt" / f"train.{language}"
    file.write_text(content)
    lines = content.count("\n")
    with pytest.raises(ValueError, match=f"^{file}: {lines} lines, but train.yaml has 2 segments"):
        found(tmp_path)


@pytest.mark.parametrize("name", ["train.yaml", "train.en", "train.de"])
def test_a_missing_text_is_named(tmp_path, name):
    must_c(tmp_path, [("ted_1", 0, 1, "one", "eins")])
    file = tmp_path / "en-de" / "data" / "train" / "txt" / name
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{file} is missing"):
        found(tmp_path)


def test_a_pair_is_chosen_where_there_are_several(tmp_path):
    must_c(tmp_path, [("ted_1", 0, 1, "one", "eins")])
    must_c(tmp_path, [("ted_1", 0, 1, "one", "un")], "en-fr")
    assert found(tmp_path, pair="en-fr")[0].translation == "un"
    assert found(tmp_path, pair="en-de")[0].translation == "eins"
    with pytest.raises(ValueError, match="en-de, en-fr: choose one with --pair"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="--pair is en-it"):
        read(tmp_path, "en-it")


@settings(max_examples=10)
@given(st.lists(st.tuples(LINE, LINE), min_size=1, max_size=6))
def test_covost_is_read_row_by_row_as_its_script_escapes_it(texts):
    texts += [('"', 'he said "no'), ("a\tb", "\\a\\"), ("\\\\", '\\"')]
    rows = [(f"common_voice_fr_{i}.wav", *each) for i, each in enumerate(texts)]
    with TemporaryDirectory() as folder:
        root = covost(Path(folder), rows)
        assert read(root).layout == "CoVoST 2 fr-en"
        for split in SPLITS:
            expected = [
                Utterance(clip[:-4], root / "clips" / clip, 0.0, None, *each)
                for clip, *each in rows
            ]
            assert found(root, split) == expected


def test_in_covost_a_backslash_escapes_and_in_a_manifest_it_does_not(tmp_path):
    root = covost(tmp_path / "covost", [("a.wav", "", "")])
    table = "path\tsentence\ttranslation\na.wav\t" + r"\"oui\", c:\\" + "\tone\\\ttwo\n"
    (root / "covost_v2.fr_en.train.tsv").write_text(table)
    (only,) = found(root)
    assert (only.transcript, only.translation) == ('"oui", c:\\', "one\ttwo")
    table = "audio\ttranscript\ttranslation\na.wav\t" + r"\"oui\", c:\\" + "\tone\\\n"
    (only,) = found(manifest(tmp_path / "manifest", table))
    assert (only.transcript, only.translation) == (r"\"oui\", c:\\", "one\\")


def test_covost_is_cut_into_splits_first(tmp_path):
    (tmp_path / "covost_v2.fr_en.tsv").write_text("path\ttranslation\tsplit\n")
    (tmp_path / "train.tsv").write_text("client_id\tpath\n")  # Common Voice's own
    with pytest.raises(FileNotFoundError, match=r"covost_v2.fr_en.tsv .*get_covost_splits.py"):
        read(tmp_path)


def test_covost_has_pairs_and_clips(tmp_path):
    covost(tmp_path, [("a.wav", "un", "one")])
    covost(tmp_path, [("a.wav", "un", "eins")], "fr_de")
    assert found(tmp_path, pair="fr-de")[0].translation == "eins"
    with pytest.raises(ValueError, match="fr-de, fr-en: choose one with --pair"):
        read(tmp_path)
    (tmp_path / "covost_v2.fr_en.tsv").touch()  # its source may stay beside the splits
    assert found(tmp_path, pair="fr-en")[0].translation == "one"
    (tmp_path / "clips" / "a.wav").unlink()
    message = r"train.tsv:2: its audio file .*a.wav is missing"
    with pytest.raises(FileNotFoundError, match=message):
        found(tmp_path, pair="fr-en")
    (tmp_path / "clips").rmdir()
    with pytest.raises(FileNotFoundError, match=r"clips is missing.*Common Voice"):
        read(tmp_path, "fr-en")


@settings(max_examples=10)
@given(st.lists(st.tuples(LINE, LINE), min_size=1, max_size=6))
def test_a_manifest_comes_back_as_it_was_written(texts):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        audio = wav(root / "wav" / "a.wav")
        rows = [Utterance(f"{i}", audio, 0.0, None, *each) for i, each in enumerate(texts)]
        for split in ("train", "dev", "test"):
            write_manifest(root / f"{split}.tsv", rows)
        assert read(root).layout == "manifest"
        for split in SPLITS:
            assert found(root, split) == rows


def test_a_manifest_may_have_its_columns_in_any_order_and_more_of_them(tmp_path):
    table = (
        "\ufeffduration\ttranslation\tspeaker\taudio\tid\ttranscript\tstart\r\n"
        "0.5\teins\tx\ta.wav\tmine\tone\t0.25\r\n"
        "\tzwei\tx\ta.wav\t\ttwo\t\r\n"
    )
    one, two = found(manifest(tmp_path, table))
    assert one == Utterance("mine", tmp_path / "a.wav", 0.25, 0.5, "one", "eins")
    assert two == Utterance("train-1", tmp_path / "a.wav", 0.0, None, "two", "zwei")


HEAD = "audio\ttranscript\ttranslation\tstart\n"


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("", 1, "no column 'audio': expected a header with audio, transcript, translation"),
        ("audio\ttranscript\n", 1, "no column 'translation'.*found audio, transcript"),
        ("a.wav\tone\teins\n", 1, "no column 'audio'"),
        (f"{HEAD[:-1]}\taudio\n", 1, "two columns of one name"),
        (f"{HEAD}a.wav\tone\teins\t0\na.wav\tone\teins\n", 3, "3 cells, and the header has 4"),
        (f"{HEAD}a.wav\tone\teins\t0\t\n", 2, "5 cells, and the header has 4"),
        (f"{HEAD}a.wav\tone\teins\t0\n\n", 3, "1 cells, and the header has 4"),
        (f"{HEAD}b.wav\tone\teins\t0\n", 2, "its audio file .*b.wav is missing"),
        (f"{HEAD}\tone\teins\t0\n", 2, "its audio file .* is missing"),
        (f"{HEAD}a.wav\tone\teins\tsoon\n", 2, "start is 'soon': expected seconds, 0 or more"),
        (f"{HEAD}a.wav\tone\teins\t-0.1\n", 2, "start is '-0.1'"),
        (f"{HEAD}a.wav\tone\teins\tinf\n", 2, "start is 'inf'"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, table, line, message):
    manifest(tmp_path, table)
    place = re.escape(str(tmp_path / "train.tsv"))
    with pytest.raises((ValueError, OSError), match=f"^{place}:{line}: {message}"):
        found(tmp_path)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_only_the_validation_split_may_be_missing(tmp_path, missing):
    rows = [("ted_1", 0, 1, "one", "eins")]
    must_c(tmp_path / "m", rows)
    folder = tmp_path / "m" / "en-de" / "data" / MUST_C[missing]
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"^{folder} is missing"):
        read(tmp_path / "m")
    manifest(tmp_path / "t")
    (tmp_path / "t" / f"{missing}.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=f"the {missing} split is missing beside"):
        read(tmp_path / "t")


def test_validation_and_dev_are_one_split(tmp_path):
    manifest(tmp_path)
    (tmp_path / "dev.tsv").write_text("")
    with pytest.raises(ValueError, match=r"dev.tsv and validation.tsv: keep one"):
        read(tmp_path)


def test_a_folder_without_a_layout_is_refused(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({}))
    with pytest.raises(
        FileNotFoundError, match=r"train.json.*What would do:(.|\n)*MuST-C.*\n.*CoVo"
    ):
        read(tmp_path)


def test_a_text_that_a_manifest_cannot_hold_is_refused(tmp_path):
    row = Utterance("7", wav(tmp_path / "a.wav"), 0.0, None, "one\ttwo", "eins")
    for each in (row, replace(row, transcript="one\ntwo"), replace(row, transcript="one\rtwo")):
        with pytest.raises(ValueError, match="7: a text has a tab or a line break"):
            write_manifest(tmp_path / "train.tsv", [each])


def numbered(count: int, missing: tuple[str, ...] = ("validation",)) -> Source:
    rows = [Utterance(str(i), Path("a.wav"), 0.0, None, "one", "eins") for i in range(count)]
    there = [split for split in SPLITS if split not in missing]
    return Source("numbers", {split: lambda: iter(rows) for split in there})


@given(st.integers(2, 60), st.data())
def test_a_missing_validation_split_is_drawn_from_the_training_split(count, data):
    held_out, seed = data.draw(st.integers(1, count - 1)), data.draw(st.integers(0, 9))
    splits = read_splits(numbered(count), held_out, seed)
    assert list(splits) == list(SPLITS)
    train, validation = ([int(each.id) for each in splits[name]] for name in SPLITS[:2])
    assert len(validation) == held_out
    assert sorted(train + validation) == list(range(count)) == [int(x.id) for x in splits["test"]]
    assert train == sorted(train)
    assert read_splits(numbered(count), held_out, seed) == splits


def test_another_seed_holds_out_others():
    one, two = (read_splits(numbered(100), 10, seed)["validation"] for seed in (0, 1))
    assert one != two
    assert [each.id for each in read_splits(numbered(20), 3, 0)["validation"]] == ["4", "6", "19"]


def test_a_validation_split_that_is_there_stays():
    splits = read_splits(numbered(4, missing=()), 3, 0)
    assert [len(splits[name]) for name in SPLITS] == [4, 4, 4]


@pytest.mark.parametrize("held_out", [0, -1, 4, 9])
def test_holding_out_nothing_or_everything_is_refused(held_out):
    with pytest.raises(ValueError, match=f"4 utterances and {held_out} are .*another --held-out"):
        read_splits(numbered(4), held_out, 0)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="the train split of numbers has no utterances"):
        read_splits(numbered(0), 1, 0)
