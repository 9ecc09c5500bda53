"""Prepared speech: what the processor gives, kept whole, honest about what was left out."""

import errno
import io
import json
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from transformers import PreTrainedTokenizerFast

from leapformer.cli import main
from leapformer.models import LeaPformerSpeechProcessor
from leapformer.tasks.files import SPLITS
from leapformer.tasks.speech import prepare as preparing
from leapformer.tasks.speech import store
from leapformer.tasks.speech.audio import read_audio
from leapformer.tasks.speech.corpus import read
from leapformer.tasks.speech.data import SpeechData, load
from leapformer.tasks.speech.digits import Counts
from leapformer.tasks.speech.prepare import prepare

COUNTS = {"train": 70, "validation": 3, "test": 5}
WORDS = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"]


def corpus(root: Path, splits: tuple[str, ...] = SPLITS) -> Path:
    """A manifest: noise of another length and level each, some of it stereo or at other rates, the
    last utterance a span."""
    for s, split in enumerate(splits):
        chance = np.random.default_rng(s)
        (root / split).mkdir(parents=True)
        rows = ["id\taudio\ttranscript\ttranslation\tstart\tduration"]
        for i in range(COUNTS[split]):
            rate, channels = (16_000, 8000, 48_000)[i % 3], 1 + i % 2
            audio = chance.normal(0, 0.02 * (1 + i % 5), (rate // 8 + 8 * i, channels))
            soundfile.write(root / split / f"{i}.wav", audio, rate)
            text = f"{WORDS[i % 10]} {WORDS[i // 10]}"
            span = "0.025\t0.08" if i == COUNTS[split] - 1 else "\t"
            rows.append(f"{split}-{i}\t{split}/{i}.wav\t{i} in words\t{text}\t{span}")
        (root / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("speech") / "source")


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    prepare(source, source.parent / "made", vocab_size=60)
    return source.parent / "made"


@pytest.fixture(scope="module")
def data(made: Path) -> SpeechData:
    return load(made)


@pytest.fixture
def broken(source, tmp_path) -> Path:
    """A copy of the corpus, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "source"))


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_what_the_processor_makes_of_the_audio(source, data, split):
    utterances = list(read(source).splits[split]())
    assert len(data.splits[split]) == len(utterances) == COUNTS[split]
    for i, each in enumerate(utterances):
        item = data.splits[split][i]
        audio = read_audio(item["audio"], item["start"], item["duration"])
        np.testing.assert_array_equal(audio, read_audio(each.audio, each.start, each.duration))
        found = data.processor(audio=audio)["input_features"][0]
        assert item["input_features"].dtype == np.float32
        np.testing.assert_array_equal(item["input_features"], found)
        assert data.splits[split].frames[i] == len(found)
        assert item["samples"] == len(audio)
        assert item["duration"] == each.duration
        expected = each.id, each.audio, each.start, each.transcript, each.translation
        names = ("id", "audio", "start", "transcript", "translation")
        assert tuple(item[name] for name in names) == expected
    assert data.splits[split][-1]["id"] == utterances[-1].id
    with pytest.raises(IndexError):
        data.splits[split][len(utterances)]


def test_the_training_split_is_normal_and_no_other_split_counts(data):
    for split in SPLITS:
        frames = np.concatenate([item["input_features"] for item in data.splits[split]])
        frames = frames.astype(np.float64)
        centred = np.abs(frames.mean(0)).max() < 1e-4
        assert centred == (split == "train")
        assert (np.abs(frames.std(0) - 1).max() < 1e-4) == (split == "train")


def test_the_description_counts_everything(made, data):
    assert data.about == json.loads((made / "about.json").read_text())
    assert data.about["layout"] == "manifest"
    for split, about in data.about["splits"].items():
        items = list(data.splits[split])
        assert about["utterances"] == len(items)
        assert about["samples"] == sum(item["samples"] for item in items)
        assert about["frames"] == sum(len(item["input_features"]) for item in items)
        assert about["hours"] == round(about["samples"] / 16_000 / 3600, 3)
        assert about["left_out"] == []
    sizes = data.about["vocab_sizes"]
    assert sizes["translation"] == len(data.processor.tokenizer)
    assert sizes["transcript"] == len(data.transcript_tokenizer)


def test_the_same_corpus_gives_the_same_data(source, made, tmp_path):
    again = prepare(source, tmp_path / "again", vocab_size=60)
    assert again == json.loads((made / "about.json").read_text())


def test_the_checksum_is_of_every_sample_and_every_text(broken, made, tmp_path):
    sums = {json.loads((made / "about.json").read_text())["splits"]["test"]["sha256"]}

    def change(name: str) -> None:
        about = prepare(broken, tmp_path / name, vocab_size=60)
        sums.add(about["splits"]["test"]["sha256"])

    audio, rate = soundfile.read(broken / "test" / "0.wav")
    audio[500] += 0.01
    soundfile.write(broken / "test" / "0.wav", audio, rate)
    change("a")
    table = broken / "test.tsv"
    for i, (old, new) in enumerate([("test-0", "test_0"), ("eins", "Eins"), ("0 in", "0 In")]):
        table.write_text(table.read_text().replace(old, new, 1))
        change(str(i))
    assert len(sums) == 5


def test_vocabularies_are_of_the_training_split(data):
    def known(tokenizer: PreTrainedTokenizerFast) -> set[str]:
        return set("".join(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)))

    items = list(data.splits["train"])
    for tokenizer, kind in (
        (data.processor.tokenizer, "translation"),
        (data.transcript_tokenizer, "transcript"),
    ):
        assert known(tokenizer) - {"▁"} == set("".join(item[kind] for item in items)) - {" "}
        for item in items:
            ids = tokenizer(item[kind])["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == item[kind]


def test_a_vocabulary_may_be_shared(source, tmp_path):
    prepare(source, tmp_path / "made", vocab_size=60, shared_vocabulary=True)
    shared = load(tmp_path / "made")
    vocabulary = shared.processor.tokenizer.get_vocab()
    assert vocabulary == shared.transcript_tokenizer.get_vocab()
    assert {"ü", "7"} <= set("".join(vocabulary))


def test_features_are_mapped_from_disk_and_not_copied(made):
    before = pa.total_allocated_bytes()
    train = load(made).splits["train"]
    size = sum(len(train[i]["input_features"]) for i in range(len(train))) * 320
    assert size > 200_000
    assert pa.total_allocated_bytes() - before < size / 10
    again = pickle.dumps(train)
    assert len(again) < size / 10
    np.testing.assert_array_equal(
        pickle.loads(again)[65]["input_features"], train[65]["input_features"]
    )


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def quiet(path: Path, samples: int) -> None:
    soundfile.write(path, np.zeros(samples), 16_000)


FAULTS = {
    "truncated": cut_short,
    "file is empty": lambda path: path.write_bytes(b""),
    "cannot be read as audio": lambda path: path.write_text("no audio"),
    "too short, 4 frames": lambda path: quiet(path, 879),
    "no samples in it": lambda path: quiet(path, 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_utterance_that_cannot_be_used_is_left_out_and_named(broken, tmp_path, fault):
    FAULTS[fault](broken / "train" / "7.wav")
    with pytest.warns(UserWarning, match=rf"train: 1 of 70 utterances left out: train-7 .*{fault}"):
        about = prepare(broken, tmp_path / "made", vocab_size=60, max_bad=0.02)
    (left_out,) = about["splits"]["train"]["left_out"]
    assert left_out.startswith("train-7 (")
    train = load(tmp_path / "made").splits["train"]
    assert [item["id"] for item in train] == [f"train-{i}" for i in range(70) if i != 7]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t7 in words\t", "\t \t", "it has no transcript"),
        ("\t7 in words\tacht eins\t", "\t7 in words\t\t", "it has no translation"),
        ("train/7.wav\t7 in words\tacht eins\t\t", "train/7.wav\t7\t8\t9\t1", "no span of 1 s"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out(broken, tmp_path, old, new, message):
    table = broken / "train.tsv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    with pytest.warns(UserWarning, match=rf"train-7 \(.*{message}"):
        prepare(broken, tmp_path / "made", vocab_size=60, max_bad=0.02)
    assert len(load(tmp_path / "made").splits["train"]) == 69


def test_silence_and_the_shortest_utterance_stay(broken, tmp_path):
    for i in range(COUNTS["train"]):
        quiet(broken / "train" / f"{i}.wav", 880 + 1000 * (i == 69))
    prepare(broken, tmp_path / "made", vocab_size=60)
    made = load(tmp_path / "made")
    assert made.processor.feature_extractor.std == [1.0] * 80
    for item in made.splits["train"]:
        assert item["input_features"].shape[0] >= 4
        assert not item["input_features"].any()
    assert all(np.isfinite(item["input_features"]).all() for item in made.splits["test"])


def test_too_many_that_cannot_be_used_are_an_error_as_soon_as_it_is_known(
    broken, tmp_path, monkeypatch
):
    for i in (3, 5, 6, 69):
        cut_short(broken / "train" / f"{i}.wav")
    seen = []

    def watched(path: Path, *span: float) -> np.ndarray:
        seen.append(path.stem)
        return read_audio(path, *span)

    monkeypatch.setattr(store, "read_audio", watched)
    message = r"train: 3 of 70 .* train-3 .*train-5 .*train-6 .*: more than --max-bad 0.03 allows"
    with pytest.raises(ValueError, match=message):
        prepare(broken, tmp_path / "kept" / "made", vocab_size=60, max_bad=0.03)
    assert seen == list("0123456")
    assert list((tmp_path / "kept").iterdir()) == []


def test_no_utterance_at_all_is_an_error(broken, tmp_path):
    for i in range(COUNTS["test"]):
        cut_short(broken / "test" / f"{i}.wav")
    message = "test: 5 of 5 utterances left out: .*none is left"
    with pytest.raises(ValueError, match=message):
        prepare(broken, tmp_path / "made", vocab_size=60, max_bad=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bad": -0.1}, "max_bad is -0.1: expected a share"),
        ({"max_bad": 1.5}, "max_bad is 1.5: expected a share"),
        ({"corpus": "digit"}, r"unknown corpus 'digit' \(did you mean digits\?\)"),
        ({"corpus": "digits"}, "choose with --pair en-de or en-fr"),
        ({"corpus": "digits", "pair": "de-en"}, "unknown pair 'de-en'"),
        ({"vocab_size": 5}, "vocab_size is 5: .*at least"),
    ],
)
def test_options_that_cannot_be_are_refused_and_leave_nothing(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "kept" / "made", **options)
    kept = tmp_path / "kept"
    assert not kept.exists() or list(kept.iterdir()) == []


def test_what_is_there_is_not_written_over(source, tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(FileExistsError, match=r"made is there already.*another --out"):
        prepare(source, tmp_path / "made")


def test_a_missing_validation_split_is_held_out(broken, tmp_path):
    (broken / "validation.tsv").unlink()
    prepare(broken, tmp_path / "made", vocab_size=60, held_out=11, seed=1)
    splits = load(tmp_path / "made").splits
    ids = [{item["id"] for item in splits[name]} for name in SPLITS[:2]]
    assert [len(each) for each in ids] == [59, 11]
    assert ids[0] | ids[1] == {f"train-{i}" for i in range(70)}


STEPS = [
    (pa, "OSFile"),
    (LeaPformerSpeechProcessor, "save_pretrained"),
    (PreTrainedTokenizerFast, "save_pretrained"),
    (preparing, "write_json"),
]


@pytest.mark.parametrize(("place", "step"), STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch, place, step, late):
    done = getattr(place, step)

    def full(*arguments):
        if late:
            done(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, step, full)
    with pytest.raises(OSError, match="No space left"):
        prepare(source, tmp_path / "kept" / "made", vocab_size=60)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(("place", "step"), STEPS)
def test_what_a_kill_leaves_is_never_taken_for_whole(source, tmp_path, monkeypatch, place, step):
    out = tmp_path / "kept" / "made"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, step, killed)
        patch.setattr(shutil, "rmtree", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, out, vocab_size=60)
    (left,) = (tmp_path / "kept").iterdir()
    assert left.name.startswith(".made-")
    for folder in (out, left, left / "data"):
        with pytest.raises(FileNotFoundError, match="leapformer speech prepare --source"):
            load(folder)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


ANEW = "delete it and make it anew"


@pytest.mark.parametrize("about", ["[]", "{}", '{"splits": {}}', "7", "null"])
def test_a_damaged_description_is_refused(copy, about):
    (copy / "about.json").write_text(about)
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("key", ["utterances", "frames", "samples"])
def test_another_count_is_refused(copy, split, key):
    about = json.loads((copy / "about.json").read_text())
    about["splits"][split][key] += 1
    (copy / "about.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


FILES = ["processor/processor_config.json", "processor/tokenizer.json"]
FILES += ["processor/tokenizer_config.json", "transcript_tokenizer/tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_processor_is_refused(copy, name):
    file = copy / name
    content = file.read_text()
    for changed in (None, "", content[:-3], content.replace("1", "2", 1)):
        if changed is None:
            file.unlink()
        else:
            file.write_text(changed)
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
def test_features_cut_anywhere_are_never_a_shorter_split(copy, split):
    file = copy / f"{split}.arrow"
    whole = file.read_bytes()
    places = ends(whole)
    assert len(places) == 1 + -(-COUNTS[split] // 64)
    for cut in {0, 7, *places[:-1], *(place + 9 for place in places[:-1]), places[-1] - 1}:
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=ANEW):
            load(copy)
    file.unlink()
    with pytest.raises(ValueError, match=ANEW):
        load(copy)


@pytest.fixture(scope="module")
def recordings(shared_data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real speakers, some recordings of each digit for each split."""
    folder = tmp_path_factory.mktemp("fsdd")
    wanted = re.compile(r"recordings/\d_(theo|lucas)_(0|1[0-2]|45)\.wav")
    with tarfile.open(shared_data / "fsdd" / "fsdd_recordings.tar.xz") as archive:
        members = [each for each in archive if wanted.search(each.name)]
        archive.extractall(folder, members, filter="data")
    return folder


@pytest.mark.parametrize("pair", ["en-de", "en-fr"])
def test_real_digits_become_a_corpus_that_can_be_moved(recordings, tmp_path, pair):
    counts = Counts(20, 4, 5)
    about = prepare(recordings, tmp_path / "made", "digits", pair, counts=counts, seed=1)
    assert about["layout"] == f"digits {pair}"
    (tmp_path / "made").rename(tmp_path / "moved")
    made = load(tmp_path / "moved")
    for name in SPLITS:
        assert len(made.splits[name]) == getattr(counts, name)
        for item in made.splits[name]:
            audio = read_audio(item["audio"])
            assert item["audio"].is_relative_to(tmp_path / "moved")
            assert len(audio) == item["samples"]
            found = made.processor(audio=audio, text=item["translation"])
            np.testing.assert_array_equal(found["input_features"][0], item["input_features"])
            text = made.processor.batch_decode(found["labels"], skip_special_tokens=True)
            assert text == [item["translation"]] or name != "train"


def test_the_command_prepares_and_says_what_it_made(broken, tmp_path, capsys):
    cut_short(broken / "train" / "7.wav")
    words = f"speech prepare --source {broken} --out {tmp_path}/made --vocab-size 60".split()
    assert main(words) == 2
    assert "more than --max-bad 0.01 allows" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="train-7"):
        assert main([*words, "--max-bad", "0.02"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("manifest, ")
    assert "  train: 69 utterances, 0.00 hours, 1 left out\n" in said
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert len(load(tmp_path / "made").splits["test"]) == COUNTS["test"]
