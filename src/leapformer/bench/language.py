"""What a language model holds: in training over lengths, in generation over ever longer texts."""

import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import trange

from .. import plots
from ..models import LeaPformerCache, LeaPformerConfig, LeaPformerForCausalLM
from ..results import json_file, signature, write_json
from ..timing import peak_bytes, seconds, spread
from ..timing import threads as limited

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
BLOCK = 1000
"""Tokens between two looks at the clock."""


def run(
    out: Path,
    attentions: list[str],
    lengths: list[int],
    tokens: int,
    growing: int,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Measure, and write `out` (JSON) and the picture beside it.

    Training: memory and time of a step on one row of each length. Generation: `tokens` tokens, the
    likeliest each time, with the time of every thousand, what the cache holds and what the process
    does; mechanisms whose state grows stop at `growing`.
    """
    json_file(out)
    if min(rounds, threads, *lengths) < 1 or min(tokens, growing) < BLOCK:
        raise ValueError(
            f"rounds, threads and lengths must be at least 1, tokens at least {BLOCK:,}"
        )
    torch.manual_seed(0)
    with limited(threads):
        generation = [  # first: what training gives back would hide what the process grows by
            {"attention": name, "blocks": _generation(name, tokens, growing)} for name in attentions
        ]
        training = [
            record for length in lengths for record in _training(attentions, length, rounds)
        ]
        result = {
            "signature": signature(
                bench="language",
                precision="float32",
                seed=0,
                recipe={
                    "attentions": attentions,
                    "lengths": lengths,
                    "tokens": tokens,
                    "growing": growing,
                    "rounds": rounds,
                    "model": SHAPE,
                },
            ),
            "training": training,
            "generation": generation,
        }
    write_json(out, result)
    plots.language_bench(result, out.with_suffix(".png"))
    return result


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _model(attention: str, longest: int) -> LeaPformerForCausalLM:
    config = LeaPformerConfig(
        attention=attention,
        max_position_embeddings=longest,
        position_embedding="sinusoidal",
        hidden_dropout_prob=0.0,
        pad_token_id=None,
        **SHAPE,
    )
    return LeaPformerForCausalLM(config).to(_device())


def _training(attentions: list[str], length: int, rounds: int) -> list[dict[str, Any]]:
    ids = torch.randint(SHAPE["vocab_size"], (1, length), device=_device())
    models = {name: _model(name, length).train() for name in attentions}

    def step(model: LeaPformerForCausalLM) -> None:
        model(ids, labels=ids).loss.backward()
        model.zero_grad()

    steps = {name: (lambda model=model: step(model)) for name, model in models.items()}
    taken = seconds(steps, rounds, label=f"training, {length}")
    return [
        {
            "attention": name,
            "length": length,
            "seconds": spread(taken[name]),
            "peak_bytes": peak_bytes(steps[name]),
        }
        for name in attentions
    ]


@torch.inference_mode()
def _generation(attention: str, tokens: int, growing: int) -> list[dict[str, Any]]:
    """Of every thousand tokens: how many there are by then, seconds a token, bytes held."""
    model = _model(attention, tokens).eval()
    streaming = model.model.layers[0].attention.attention.traits.streaming
    cache, new = LeaPformerCache(), torch.zeros(1, 1, dtype=torch.long, device=_device())
    blocks, process = [], psutil.Process(os.getpid())
    total = tokens if streaming else min(growing, tokens)
    for end in trange(BLOCK, total + 1, BLOCK, desc=f"generating, {attention}", leave=False):
        began = time.perf_counter()
        for _ in range(BLOCK):
            new = model(new, cache=cache).logits[:, -1:].argmax(-1)
        new.item()  # waits for the device
        blocks.append(
            {
                "tokens": end,
                "seconds": (time.perf_counter() - began) / BLOCK,
                "cache_bytes": cache.nbytes,
                "process_bytes": process.memory_info().rss,
            }
        )
    return blocks
