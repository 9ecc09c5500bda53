"""Perplexity: each token's loss is that of a direct pass over the context that the windows promise,
and all figures follow from one total."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leapformer import LeaPformerConfig, LeaPformerForCausalLM
from leapformer.cli import main
from leapformer.tasks.lm.data import Tokens, load
from leapformer.tasks.lm.evaluate import by_length, measure, shown_tokens, token_losses

VOCABULARY = 37
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make(attention="leap", **options):
    """A random model that is sure of some tokens and not of others."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
        "position_embedding": "sinusoidal",
        "initializer_range": 0.5,
        "pad_token_id": None,
    }
    config = LeaPformerConfig(attention=attention, causal=True, **(sizes | options))
    return LeaPformerForCausalLM(config).eval()


def text(length, count_bytes=0, count_words=0):
    ids = np.random.default_rng(length).integers(0, VOCABULARY, length)
    return Tokens.join([ids[: length // 3], ids[length // 3 :]], [count_bytes, 0], [count_words, 0])


@torch.no_grad()
def direct(model, ids):
    """-log p of each token of one text [n] but the first, from the logits."""
    logits = model(torch.as_tensor(ids)[None]).logits[0, :-1].double()
    return -logits.log_softmax(-1).gather(1, torch.as_tensor(ids)[1:, None]).squeeze(1)


def promised(length, window, context):
    """The windows as the definition has them: the end of each, and the first token it scores."""
    scored, end = 1, min(window, length)
    while True:
        yield max(0, end - window), scored, end
        if end == length:
            return
        scored, end = end, min(end + window - max(context, 1), length)


@pytest.fixture(scope="module", params=["dense", "adaptive"])
def model(request):
    if request.param == "dense":
        return make(tie_word_embeddings=False)
    return make(adaptive_cutoffs=[5, 20], adaptive_factor=2)


SIZES = st.integers(2, 12).flatmap(
    lambda window: st.tuples(st.just(window), st.integers(0, window - 1), st.integers(2, 40))
)


@settings(max_examples=60)
@given(sizes=SIZES, at_once=st.sampled_from([1, 7, 24, 1000]))
def test_each_token_has_the_loss_of_a_direct_pass_over_its_context(model, sizes, at_once):
    window, context, length = sizes
    tokens = text(length)
    found = token_losses(model, tokens, window, context, at_once)
    assert (found.shape, found.dtype) == ((length - 1,), torch.float64)
    covered = []
    for start, first, end in promised(length, window, context):
        assert end - start == min(window, length)
        assert start == 0 or first - start >= max(context, 1)
        expected = direct(model, tokens[start:end])[first - 1 - start :]
        torch.testing.assert_close(found[first - 1 : end - 1], expected, **CLOSE)
        covered += range(first, end)
    assert covered == list(range(1, length))


@pytest.mark.parametrize(("window", "context", "length"), [(8, 7, 30), (8, 0, 30), (50, 9, 30)])
def test_context_is_exactly_what_was_asked_for(model, window, context, length):
    """One less than the window: each token after exactly as many. None: windows side by side. A
    text shorter than the window: one pass over it all."""
    tokens = text(length)
    found = token_losses(model, tokens, window, context)
    for i in range(1, length):
        begin = {7: max(0, i - 7), 0: (i - 1) // 7 * 7, 9: 0}[context]
        begin = min(begin, length - 8) if context == 0 else begin  # the last reaches back
        expected = direct(model, tokens[begin : i + 1])[-1]
        torch.testing.assert_close(found[i - 1], expected, **CLOSE)


def test_figures_follow_from_one_total(model):
    tokens = text(40, count_bytes=211, count_words=13)
    found, total = measure(model, tokens, 9, 4), token_losses(model, tokens, 9, 4).sum().item()
    assert found == {
        "window": 9,
        "context": 4,
        "tokens": 39,
        "words": 13,
        "bytes": 211,
        "loss": pytest.approx(total / 39),
        "perplexity": pytest.approx(math.exp(total / 39)),
        "word_perplexity": pytest.approx(math.exp(total / 13)),
        "bits_per_byte": pytest.approx(total / math.log(2) / 211),
    }


def test_tokens_that_training_showed_are_measured_by_themselves_too(model):
    tokens = text(40)
    shown = shown_tokens(text(12), VOCABULARY)
    assert shown.tolist() == [i in text(12)[:12] for i in range(VOCABULARY)]
    known = shown[torch.from_numpy(tokens[1:40])]
    assert 0 < known.sum() < 39
    losses = token_losses(model, tokens, 9, 4)[known]
    found = measure(model, tokens, 9, 4, shown)
    assert found["shown"] == {
        "tokens": int(known.sum()),
        "loss": pytest.approx(losses.mean().item()),
        "perplexity": pytest.approx(losses.mean().exp().item()),
    }
    nothing = measure(model, tokens, 9, 4, torch.zeros(VOCABULARY, dtype=torch.bool))["shown"]
    assert nothing == {"tokens": 0, "loss": None, "perplexity": None}
    assert {**found, "shown": 0} == {**measure(model, tokens, 9, 4), "shown": 0}


def test_only_scored_tokens_are_measured(model):
    scored = np.arange(40) % 3 > 0
    tokens, whole = replace(text(40, 17, 5), scored=scored), text(40)
    kept = torch.from_numpy(scored[1:])
    losses = token_losses(model, whole, 9, 4)
    shown = shown_tokens(text(12), VOCABULARY)
    known = kept & shown[torch.from_numpy(whole[1:])]
    found = measure(model, tokens, 9, 4, shown)
    assert (found["tokens"], found["words"], found["bytes"]) == (int(kept.sum()), 5, 17)
    assert found["loss"] == pytest.approx(losses[kept].mean().item())
    assert found["bits_per_byte"] == pytest.approx(losses[kept].sum().item() / math.log(2) / 17)
    assert found["shown"]["tokens"] == int(known.sum())
    assert found["shown"]["loss"] == pytest.approx(losses[known].mean().item())
    (after,) = by_length(model, tokens, [16], spans=1)
    last = token_losses(model, Tokens.join([whole[:16]], 0, 0), 16, 0)[-8:]
    assert after["tokens"] == int(scored[8:16].sum())
    assert after["loss"] == pytest.approx(last[torch.from_numpy(scored[8:16])].mean().item())
    part = tokens.first(13)
    assert part.scored.tolist() == scored[: len(part)].tolist()


def test_a_text_of_which_nothing_is_scored_is_refused(model):
    tokens = replace(text(20), scored=np.zeros(20, bool))
    with pytest.raises(ValueError, match="no token of the text is scored"):
        measure(model, tokens, 9, 4)
    (found,) = by_length(model, tokens, [16], spans=2)
    assert found["error"] == "none of the last 8 tokens of the windows is scored"


def test_who_knows_nothing_is_as_perplexed_as_the_vocabulary_is_large():
    model = make(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    found = measure(model, text(33, 64, 8), 10, 5)
    assert found["perplexity"] == pytest.approx(VOCABULARY, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(32 * math.log2(VOCABULARY) / 64, rel=1e-6)
    assert found["word_perplexity"] == pytest.approx(VOCABULARY ** (32 / 8), rel=1e-6)


def test_a_perplexity_beyond_all_numbers_is_infinite():
    assert measure(make(initializer_range=9.0), text(30, 30, 1), 8, 4)["word_perplexity"] > 1e300


@pytest.mark.parametrize("lengths", [[2], [5, 16], [8, 9, 32], [32, 70]])
def test_by_length_scores_the_same_tokens_after_ever_more_context(model, lengths):
    tokens, scored = text(70), lengths[0] // 2
    ends = sorted({int(end) for end in torch.linspace(lengths[-1], 70, 4)})
    assert (ends[0], ends[-1]) == (lengths[-1], 70)
    for found, length in zip(by_length(model, tokens, lengths, spans=4), lengths, strict=True):
        expected = torch.cat([direct(model, tokens[end - length : end])[-scored:] for end in ends])
        assert (found["length"], found["tokens"], found["error"]) == (length, len(expected), None)
        assert found["loss"] == pytest.approx(expected.mean().item(), rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_losses_that_are_no_numbers_are_an_error():
    model = make()
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    with pytest.raises(FloatingPointError, match="weights are damaged"):
        measure(model, text(30), 8, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention": "cosformer"}, "cosformer was made for at most 16 tokens"),
        ({"position_embedding": "learned"}, "learned positions was made for at most 16 tokens"),
    ],
)
def test_lengths_that_cannot_be_read_have_an_error_and_the_others_a_loss(
    options, said, monkeypatch
):
    """On a GPU it would be too late to find out while reading."""
    model, read = make(**options), []
    real = model.token_losses
    monkeypatch.setattr(model, "token_losses", lambda ids: read.append(ids.shape[1]) or real(ids))
    found = by_length(model, text(40), [8, 16, 17, 32, 64], spans=8)
    assert ["loss" in record for record in found] == [True, True, False, False, False]
    assert all(said in record["error"] for record in found[2:4])
    assert "shorter than 64" in found[4]["error"]
    assert [record.get("tokens") for record in found] == [32, 32, None, None, None]
    with pytest.raises(ValueError, match=said + " and cannot read 17"):
        token_losses(model, text(40), 17, 3)
    assert len(token_losses(model, text(16), 64, 3)) == 15  # the text is what is read
    assert max(read) == 16


@pytest.mark.parametrize("attention", ["leap", "linear", "softmax"])
def test_others_read_any_length(attention):
    found = by_length(make(attention), text(200), [16, 64, 128], spans=2)
    assert all(record["error"] is None and record["loss"] > 0 for record in found)


@pytest.mark.parametrize(
    ("length", "window", "context", "fault"),
    [
        (30, 8, 8, "context is 8: expected 0 or more, below the window of 8"),
        (30, 8, -1, "context is -1"),
        (30, 1, 0, "window is 1: expected at least 2"),
        (30, 0, 0, "window is 0"),
        (1, 8, 4, "the text has 1 tokens: there is nothing to predict"),
        (0, 8, 4, "the text has 0 tokens"),
    ],
)
def test_windows_that_are_none_are_refused(length, window, context, fault):
    with pytest.raises(ValueError, match=fault):
        token_losses(make(), text(length), window, context)


@pytest.mark.parametrize(("lengths", "spans"), [([8, 1], 4), ([0], 4), ([-8], 4), ([8], 0)])
def test_lengths_that_are_none_are_refused(lengths, spans):
    with pytest.raises(ValueError, match="expected at least 2 tokens and 1 span"):
        by_length(make(), text(30), lengths, spans)


def test_the_command_says_and_writes_what_was_measured(finished, folder, tmp_path, capsys):
    out, result = finished
    line = ["lm", "evaluate", "--model", out / "model", "--data", folder, "--tokens", 10**6]
    line += ["--lengths", "8,4096", "--out", tmp_path / "new" / "found.json"]
    assert main([str(word) for word in line]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "new/found.json").read_text())
    assert {key: found[key] for key in result["test"]} == result["test"]
    first, last = found["by_length"]
    assert said.splitlines() == [
        f"perplexity {found['perplexity']:.2f} a token, {found['word_perplexity']:.2f} a word, "
        f"{found['bits_per_byte']:.3f} bits a byte ({found['tokens']:,} tokens)",
        f"  in windows of 8 tokens: perplexity {first['perplexity']:.2f}",
        "  in windows of 4,096 tokens: the text is shorter than 4096 tokens",
    ]
    assert found["signature"]["model"] == str(out / "model")
    assert last["error"]


def test_a_text_is_one_document_and_all_of_it_is_scored(finished, folder, tmp_path, capsys):
    file, out = tmp_path / "text.txt", tmp_path / "found.json"
    file.write_text("the cat sat\non a mät\n", encoding="utf-8")
    line = ["lm", "evaluate", "--model", finished[0] / "model", "--text", file, "--out", out]
    assert main([str(word) for word in line]) == 0
    found = json.loads(out.read_text())
    _, tokenizer, _ = load(folder)
    assert found["tokens"] == len(tokenizer(file.read_text(encoding="utf-8")).input_ids)
    assert (found["bytes"], found["words"]) == (len(file.read_bytes()), 6)


def test_wikitext_is_measured_as_natural_text(finished, tmp_path):
    file, out = tmp_path / "wiki.test.tokens", tmp_path / "found.json"
    file.write_text(" = The cat = \n \n The far @-@ away <unk> <unk> , a cat . \n")
    line = ["lm", "evaluate", "--model", finished[0] / "model", "--text", file, "--out", out]
    assert main([str(word) for word in [*line, "--natural"]]) == 0
    found = json.loads(out.read_text())
    assert found["bytes"] == len("The cat\n\nThe far-away, a cat.\n")
    assert found["words"] == 7  # the comma stands by itself
    assert found["signature"]["natural"] is True


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ("--data {data} --natural", "--natural is for --text"),
        ("", "give either --text, a file, or --data"),
        ("--text {text} --data {data}", "give either --text"),
        ("--data {words}", "different tokenizers: give the data that the model was trained on"),
        ("--data {nowhere}", "no tokens in .*: leapformer lm prepare"),
        ("--text {nowhere}", "No such file"),
        ("--text {text} --context 512", "context is 512: expected .* window of 16"),
        ("--text {text} --lengths 0,8", "expected at least 2 tokens"),
        ("--text {text} --lengths long", "--lengths long: give whole numbers"),
        ("--text {text} --out {text}/x.json", "choose another folder with --out"),
        ("--text {text} --out {data}", "give the name of a JSON file"),
        ("--text {text} --tokens 3", "--tokens cuts --data at whole documents"),
    ],
)
def test_a_mistake_is_one_line(finished, folder, words, tmp_path, capsys, options, cure):
    text = tmp_path / "text.txt"
    text.write_text("the cat\n")
    places = {"text": text, "data": folder, "words": words, "nowhere": tmp_path / "nowhere"}
    line = f"lm evaluate --model {finished[0] / 'model'} {options.format(**places)}"
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert re.search(f"(^|[\r\n])leapformer: .*{cure}.*\n$", said.err)
    assert said.out == ""
