"""Perplexity, with as much context as wanted, and how it holds at lengths never trained on."""

import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...models import LeaPformerForCausalLM
from ...zoo import attention_class
from .data import Tokens


def check_length(model: LeaPformerForCausalLM, length: int) -> None:
    """Raises ValueError where the model cannot read so many tokens. Ask first: on a GPU the device
    finds out too late, and is lost to the process."""
    config = model.config
    fixed = attention_class(config.attention).traits.fixed_length
    longest = config.max_position_embeddings
    if length > longest and (fixed or config.position_embedding == "learned"):
        what = config.attention if fixed else "a model with learned positions"
        raise ValueError(f"{what} was made for at most {longest} tokens and cannot read {length}")


def check_window(window: int, context: int) -> None:
    """Raises ValueError where nothing can be predicted in the window, or after the context."""
    if window < 2:
        raise ValueError(f"the window is {window}: expected at least 2 tokens, one to predict")
    if not 0 <= context < window:
        raise ValueError(f"context is {context}: expected 0 or more, below the window of {window}")


@torch.inference_mode()
def token_losses(
    model: LeaPformerForCausalLM,
    tokens: Tokens,
    window: int,
    context: int,
    tokens_at_once: int = 2**14,
) -> torch.Tensor:
    """-log p of each token but the first, in nats: float64 [len(tokens) - 1], on the CPU.

    Windows of `window` tokens move on by window - context: a token is scored where it first comes
    up, so after `context` tokens at least, except in the first window. Raises ValueError where
    there is nothing to score, the context leaves no room, or the model cannot read the window, and
    FloatingPointError where a loss is no number.
    """
    check_window(window, context)
    if len(tokens) < 2:
        raise ValueError(f"the text has {len(tokens)} tokens: there is nothing to predict")
    check_length(model, min(window, len(tokens)))
    model.eval()
    device = next(model.parameters()).device
    step = window - max(context, 1)  # without context, a window still begins with what is known
    ends = [*range(min(window, len(tokens)), len(tokens), step), len(tokens)]
    losses = torch.zeros(len(tokens) - 1, dtype=torch.float64)
    at_once, scored = max(1, tokens_at_once // window), 1
    batches = [ends[i : i + at_once] for i in range(0, len(ends), at_once)]
    for batch in tqdm(batches, desc=f"windows of {window}", unit="batch", leave=False):
        starts = [max(0, end - window) for end in batch]
        ids = torch.stack([torch.from_numpy(tokens[a : a + window]) for a in starts]).to(device)
        found = model.token_losses(ids).double().cpu()
        for row, start, end in zip(found, starts, batch, strict=True):
            losses[scored - 1 : end - 1] = row[scored - 1 - start : end - 1 - start]
            scored = end
    if bool(losses.isnan().any()):
        raise FloatingPointError("losses are no numbers: the model's weights are damaged")
    return losses


def measure(
    model: LeaPformerForCausalLM,
    tokens: Tokens,
    window: int,
    context: int,
    shown: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Loss and what follows from it: perplexity per token and per word, bits per byte of UTF-8.

    The total over all tokens, of those that are `scored`, is divided by the tokens, the words
    between blanks, and the bytes, so that models of different vocabularies can be compared. With
    `shown`, bool [vocabulary], the tokens that training showed are also measured by themselves:
    what a model says of others is arbitrary, and costs it most. Raises as `token_losses`.
    """
    losses, ids = token_losses(model, tokens, window, context), torch.from_numpy(tokens[1:])
    if tokens.scored is not None:
        scored = torch.from_numpy(tokens.scored[1:])
        losses, ids = losses[scored], ids[scored]
    if not len(losses):
        raise ValueError("no token of the text is scored: there is nothing to predict")
    total = losses.sum().item()
    apart = {}
    if shown is not None:
        known = shown[ids]
        count = int(known.sum())
        mean = losses[known].sum().item() / count if count else None
        perplexity = None if mean is None else _exp(mean)
        apart["shown"] = {"tokens": count, "loss": mean, "perplexity": perplexity}
    return {
        "window": window,
        "context": context,
        "tokens": len(losses),
        "words": tokens.words,
        "bytes": tokens.bytes,
        "loss": total / len(losses),
        "perplexity": _exp(total / len(losses)),
        "word_perplexity": _exp(total / max(1, tokens.words)),
        "bits_per_byte": total / math.log(2) / max(1, tokens.bytes),
        **apart,
    }


def shown_tokens(tokens: Tokens, vocab_size: int) -> torch.Tensor:
    """Which ids of the vocabulary the tokens have: bool [vocab_size]."""
    shown = torch.zeros(vocab_size, dtype=torch.bool)
    for begin in range(0, len(tokens), 2**20):
        shown[torch.from_numpy(tokens[begin : begin + 2**20])] = True
    return shown


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def by_length(
    model: LeaPformerForCausalLM, tokens: Tokens, lengths: list[int], spans: int
) -> list[dict[str, Any]]:
    """How well the same tokens are predicted after ever more context: the mean loss of the last
    tokens, half of the shortest length, that are `scored`, of windows of each length that end at
    `spans` places, spread evenly over the text from the end of the longest window that fits.

    A length that the model cannot read, or longer than the text, has an "error" instead. Raises
    ValueError for lengths below 2 and for no spans.
    """
    if spans < 1 or min(lengths, default=2) < 2:
        raise ValueError(f"lengths {lengths}, {spans} spans: expected at least 2 tokens and 1 span")
    last = min(lengths, default=2) // 2
    longest = max((length for length in lengths if length <= len(tokens)), default=0)
    ends = torch.linspace(longest, len(tokens), spans).long().unique().tolist()
    found = []
    for length in lengths:
        record: dict[str, Any] = {"length": length, "error": None}
        try:
            if length > longest:
                raise ValueError(f"the text is shorter than {length} tokens")
            windows = [Tokens.join([tokens[end - length : end]], 0, 0) for end in ends]
            losses = torch.cat([token_losses(model, x, length, 0)[-last:] for x in windows])
            if tokens.scored is not None:
                scored = [tokens.scored[end - last : end] for end in ends]
                losses = losses[torch.from_numpy(np.concatenate(scored))]
            if not len(losses):
                raise ValueError(f"none of the last {last} tokens of the windows is scored")
            record |= {"tokens": len(losses), "loss": losses.mean().item()}
            record["perplexity"] = _exp(record["loss"])
        except ValueError as error:
            record["error"] = str(error)
        found.append(record)
    return found
