"""Text that goes on: the model's own choice, its own probabilities, in memory that does not grow,
and printed as text."""

import json
import math
import re
import shutil
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leapformer import LeaPformerConfig, LeaPformerForCausalLM
from leapformer.cli import main
from leapformer.models import LeaPformerCache
from leapformer.tasks.lm import generate as module
from leapformer.tasks.lm.data import encode, load
from leapformer.tasks.lm.generate import (
    go_on,
    load_model,
    load_text,
    natural_tokens,
    prompt_ids,
    written,
)
from leapformer.timing import peak_bytes

PROMPT = [3, 17, 29, 5]


def make(attention="leap", **options):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
        "position_embedding": "sinusoidal",
        "initializer_range": 0.5,
        "pad_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    config = LeaPformerConfig(attention=attention, causal=True, **(sizes | options))
    model = LeaPformerForCausalLM(config).eval()
    with torch.no_grad():  # of some tokens it is sure
        next(model.lm_head.parameters()).mul_(4)
    return model


MODELS = {
    "leap": {},
    "softmax": {"attention": "softmax"},
    "cosformer": {"attention": "cosformer"},
    "adaptive": {"adaptive_cutoffs": [5, 20], "adaptive_factor": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_without_temperature_it_is_greedy_search(name):
    model = make(**MODELS[name])
    ids = torch.tensor([PROMPT])
    expected = model.generate(ids, max_new_tokens=60, do_sample=False)[0, 4:].tolist()
    assert list(go_on(model, PROMPT, 60, temperature=0, seed=1)) == expected
    assert len(set(expected)) > 3  # not one token over and over


def expected_of(logits, temperature, top_k, top_p):
    """The probabilities of the next token, by definition."""
    p = (logits.double() / temperature).softmax(-1)
    order = p.argsort(descending=True)
    kept = order[: top_k or len(p)]
    share = p[kept] / p[kept].sum()
    kept = kept[: int((share.cumsum(0) < top_p).sum()) + 1]
    return torch.zeros_like(p).index_put((kept,), p[kept]) / p[kept].sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (2.0, 0, 1.0), (0.7, 0, 1.0), (2.0, 6, 1.0), (2.0, 0, 0.8), (1.5, 20, 0.7)],
)
def test_tokens_are_drawn_with_the_probabilities_of_the_model(temperature, top_k, top_p):
    """The second one: after the prompt and the first."""
    model, options, draws = make(), (temperature, top_k, top_p), 1500
    (first,) = go_on(model, PROMPT, 1, temperature=0)
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, first]])).logits[0, -1]
    expected = expected_of(logits, *options)
    found = torch.zeros_like(expected)
    for seed in range(draws):
        (token,) = go_on(model, [*PROMPT, first], 1, *options, seed)
        found[token] += 1 / draws
    assert not found[expected == 0].any()
    distance = (found - expected).abs().sum() / 2
    assert distance < 0.09  # 0.05 is usual for so many draws
    if options != (1.0, 0, 1.0):
        assert (expected - logits.double().softmax(-1)).abs().sum() / 2 > 0.15


def test_a_seed_gives_the_same_text_again_and_another_another():
    model = make()
    first, again, other = (list(go_on(model, PROMPT, 50, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert list(go_on(model, PROMPT, 20, seed=1)) == first[:20]


def held(cache):
    """Bytes of all that is kept between tokens."""
    found = [x for s in cache.states for x in (s.recent, s.recent_feed_forward)]
    found += [value for state in cache.states for value in vars(state.attention).values()]
    tensors = [value for value in found if isinstance(value, torch.Tensor)]
    assert len(tensors) >= len(cache.states) > 0
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize(("attention", "grows"), [("leap", False), ("softmax", True)])
def test_memory_is_that_of_the_first_token(attention, grows, monkeypatch):
    model, caches = make(attention, short_convolution=3, feed_forward_convolution=4), []
    real = LeaPformerCache
    monkeypatch.setattr(module, real.__name__, lambda: caches.append(real()) or caches[-1])
    sizes = {}
    for i, _ in enumerate(go_on(model, PROMPT, 2000, temperature=0), 1):
        if i in (10, 2000):
            sizes[i] = held(caches[0])
    assert caches[0].length == 4 + 1999
    assert sizes[2000] > 50 * sizes[10] if grows else sizes[2000] == sizes[10]
    few, many = (peak_bytes(lambda n=n: list(go_on(model, PROMPT, n))) for n in (20, 200))
    assert many > 2 * few if grows else many < 1.02 * few


@pytest.mark.parametrize(
    ("ids", "options", "fault"),
    [
        ([], {}, "the prompt is empty: give at least one token"),
        (PROMPT, {"count": -1}, "count -1"),
        (PROMPT, {"temperature": -0.5}, "temperature -0.5.*expected at least 0"),
        (PROMPT, {"top_k": -1}, "top_k -1"),
        (PROMPT, {"top_p": 0.0}, r"top_p 0.0: expected .* in \(0, 1\]"),
        (PROMPT, {"top_p": 1.5}, "top_p 1.5"),
        (PROMPT, {"count": 62}, "cosformer was made for at most 64 tokens and cannot read 65"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_token(ids, options, fault):
    with pytest.raises(ValueError, match=fault):
        go_on(make("cosformer"), ids, **{"count": 1, **options})


def test_all_that_can_be_read_is_read():
    assert len(list(go_on(make("cosformer"), PROMPT, 61))) == 61


@pytest.fixture(scope="module")
def model(finished):
    return load_model(finished[0] / "model")


def typed(monkeypatch, tokens):
    """A model that says these tokens; gives what it was asked."""
    asked = []

    def said(*given, **named):
        asked.append((given, named))
        return iter(tokens)

    monkeypatch.setattr(module, "go_on", said)
    return asked


@given(prompt=st.text(max_size=12), rest=st.text(max_size=12))
def test_what_is_written_is_the_prompt_and_what_the_tokens_say(model, prompt, rest):
    _, tokenizer = model
    with pytest.MonkeyPatch.context() as patched:
        asked = typed(patched, [*encode(tokenizer, rest), tokenizer.eos_token_id, 50])
        pieces = list(written(None, tokenizer, prompt, 99, top_k=3))
    assert pieces[0] == prompt
    assert "".join(pieces) == prompt + rest  # nothing of what comes after the end
    assert asked == [((None, prompt_ids(tokenizer, prompt), 99), {"top_k": 3})]


def test_with_ignore_eos_another_document_begins(model, monkeypatch):
    _, tokenizer = model
    end = tokenizer.eos_token_id
    (half, _) = encode(tokenizer, "é")
    typed(monkeypatch, [*encode(tokenizer, "b"), half, end, *encode(tokenizer, "c"), end, end])
    assert "".join(written(None, tokenizer, "a", 9, ignore_eos=True)) == "ab\n\nc\n\n\n\n"


def test_half_a_character_waits_for_the_rest(model, monkeypatch):
    _, tokenizer = model
    (first, second), (third, *_) = encode(tokenizer, "é"), encode(tokenizer, "ü")
    typed(monkeypatch, [first, second, third])
    assert list(written(None, tokenizer, "a", 9)) == ["a", "", "é", ""]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("the cat", "the cat sat <unk>\non\n\na"),
        ("the cat ", "the cat sat <unk>\non\n\na"),
        ("home\n", "home\nsat <unk>\non\n\na"),
        ("", "sat <unk>\non\n\na"),
    ],
    ids=repr,
)
def test_in_words_the_end_is_that_of_a_line(words, monkeypatch, prompt, shown):
    _, tokenizer, _ = load(words)
    typed(monkeypatch, encode(tokenizer, "sat nothing\non\n\na"))
    assert "".join(written(None, tokenizer, prompt, 9)) == shown


@pytest.mark.parametrize("stdin", [False, True])
def test_the_command_prints_the_prompt_and_what_follows(
    finished, model, folder, capsys, monkeypatch, stdin
):
    loaded, tokenizer = model
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "seed": 4}
    ids = list(go_on(loaded, prompt_ids(tokenizer, "the cat é"), 60, **options))
    end = tokenizer.eos_token_id
    ids = ids[: ids.index(end)] if end in ids else ids
    line = ["lm", "generate", "--model", str(finished[0] / "model"), "--tokens", "60"]
    for name, value in options.items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    monkeypatch.setattr("sys.stdin.read", lambda: "the cat é", raising=False)
    assert main([*line, "--prompt", "-" if stdin else "the cat é"]) == 0
    said = capsys.readouterr().out
    assert said == "the cat é" + tokenizer.decode(ids).rstrip("\ufffd") + "\n"
    assert len(said) > 20


def test_the_command_goes_on_from_nothing_and_for_no_tokens(finished, capsys):
    line = ["lm", "generate", "--model", str(finished[0] / "model"), "--tokens"]
    assert main([*line, "20"]) == 0
    assert len(capsys.readouterr().out) > 1
    assert main([*line, "0", "--prompt", "far"]) == 0
    assert capsys.readouterr().out == "far\n"


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose(folder):
    """All of the second layer."""
    file = folder / "model.safetensors"
    kept = {name: x for name, x in load_file(file).items() if "layers.1." not in name}
    save_file(kept, file, {"format": "pt"})


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def swap_tokens(folder):
    """Two ids of the vocabulary."""
    file = folder / "tokenizer.json"
    kept = json.loads(file.read_text())
    ids = kept["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(kept))


FAULTS = {
    "no folder": (shutil.rmtree, "holds no model, .*: give the folder `model` of a run"),
    "no model": (lambda x: (x / "config.json").unlink(), "holds no model"),
    "no weights": (lambda x: (x / "model.safetensors").unlink(), "cannot read the model"),
    "weights cut off": (truncate, "cannot read the model in .*"),
    "weights missing": (
        lose,
        "cannot read the model in .*: 30 weights are missing, such as model.layers.1",
    ),
    "speech": (
        lambda x: configure(x, model_type="leapformer_speech"),
        "cannot read the model in .*: its type is 'leapformer_speech', expected 'leapformer'",
    ),
    "weights left over": (
        lambda x: configure(x, num_hidden_layers=1),
        "cannot read the model in .*: 30 weights are unexpected, such as model.layers.1",
    ),
    "another attention": (
        lambda x: configure(x, attention="linear", attention_options=None),
        "cannot read the model in .*: 20 weights are unexpected, such as .*leap_k",
    ),
    "weights of other shapes": (
        lambda x: configure(x, intermediate_size=8),
        "cannot read the model in .*: 6 weights are mismatched, such as .*feed_forward",
    ),
    "tokens of another order": (
        swap_tokens,
        "tokenizer.json is not the one that the model was trained with",
    ),
    "no tokenizer": (
        lambda x: (x / "tokenizer.json").unlink(),
        "holds no model, tokenizer.json is missing",
    ),
    "no JSON": (lambda x: (x / "config.json").write_text("{"), "cannot read the model"),
    "no tokens": (lambda x: (x / "tokenizer.json").write_text("{}"), "cannot read the model"),
}


@pytest.mark.parametrize("name", [*FAULTS, "another vocabulary"])
def test_a_damaged_model_is_one_line(finished, words, tmp_path, capsys, name):
    place = tmp_path / "model"
    shutil.copytree(finished[0] / "model", place)
    if name == "another vocabulary":
        shutil.copy(words / "tokenizer" / "tokenizer.json", place)
        cure = "the tokenizer has 15 tokens and the model 270: they do not belong together"
    else:
        damage, cure = FAULTS[name]
        damage(place)
    assert main(["lm", "generate", "--model", str(place)]) == 2
    said = capsys.readouterr()
    assert re.search(f"leapformer: .*{cure}.*\n$", said.err)
    assert said.out == ""


def test_weights_that_are_no_numbers_write_nothing(finished, tmp_path, capsys):
    place = tmp_path / "model"
    shutil.copytree(finished[0] / "model", place)
    file = place / "model.safetensors"
    save_file({k: x * math.nan for k, x in load_file(file).items()}, file, {"format": "pt"})
    for temperature in ("0", "1"):
        assert main(["lm", "generate", "--model", str(place), "--temperature", temperature]) == 2
        assert "the model's logits are no numbers: its weights" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--temperature -1", "--top-p 0", "--tokens -3"])
def test_a_bad_option_prints_no_text(finished, capsys, option):
    line = f"lm generate --model {finished[0] / 'model'} --prompt far {option}"
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search("leapformer: count .* expected at least 0 for the first three", said.err)


def test_a_prompt_that_is_no_text_is_one_line(finished, capsys):
    line = ["lm", "generate", "--model", str(finished[0] / "model"), "--prompt", "far\udcff"]
    assert main(line) == 2
    assert re.search(
        "leapformer: the prompt is not UTF-8 text .character 3.\n$", capsys.readouterr().err
    )


def test_home_is_found_in_every_place(finished, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(finished[0] / "model")
    (tmp_path / "far.txt").write_text("far far away")
    for what in (["--data", str(folder)], ["--text", "~/far.txt"]):
        assert (
            main(["lm", "evaluate", "--model", "~/model", "--window", "8", "--context", "4", *what])
            == 0
        )
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["", " \n", " <unk> \n"])
def test_natural_tokens_are_those_of_the_text_and_unknown_words_are_not_scored(
    model, tmp_path, end
):
    _, tokenizer = model
    file = tmp_path / "wiki.test.tokens"
    file.write_text(f" <unk> sat on a <unk> , far @-@ away{end}")
    tokens = natural_tokens(tokenizer, file)
    ids, scored = tokens[:], tokens.scored
    natural = f"<unk> sat on a <unk>, far-away{end.rstrip(' ')}".replace(" \n", "\n")
    assert ids[0] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:]) == natural
    read = natural.replace(" <unk>", "").replace("<unk>", "")
    assert tokenizer.decode(ids[scored][1:]) == read
    assert tokenizer.decode(ids[~scored]).split() == ["<unk>"] * natural.count("<unk>")
    assert (tokens.bytes, tokens.words) == (len(read), len(read.replace(",", " ,").split()))


def test_texts_come_from_a_file_or_from_the_data_of_the_model(finished, model, folder, words):
    place, (_, tokenizer) = finished[0] / "model", model
    tokens = load_text(place, tokenizer, None, folder)
    assert tokens[:].tolist() == load(folder)[0]["test"][:].tolist()
    with pytest.raises(ValueError, match="different tokenizers"):
        load_text(place, tokenizer, None, words)
    assert len(list(islice(go_on(model[0], tokens[:5].tolist(), 3), 2))) == 2
