"""From which length does an efficient attention pay? One layer and a model, over lengths.

The protocol of "When to Use Efficient Self Attention?" (Diwan et al., ACL Findings 2023): latency,
throughput and memory of a layer and of a model against softmax, and the length at which each
mechanism overtakes it, the tipping point. All take turns in every round, so the ratio to softmax is
taken round by round and a tipping point comes with its range over the rounds.
"""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import plots
from ..layers import MultiHeadAttention
from ..models import (
    LeaPformerConfig,
    LeaPformerForCausalLM,
    LeaPformerForSequenceClassification,
)
from ..ops import BACKENDS
from ..ops.checks import known
from ..results import json_file, signature, write_json
from ..timing import peak_bytes, seconds, spread
from ..timing import threads as limited
from ..zoo import attention_class
from .tipping import BASELINE, table, tipping_points

CASES = (("layer", "all"), ("layer", "causal"), ("model", "all"), ("model", "causal"))
PASSES = ("forward", "training")


def run(
    out: Path,
    attentions: list[str],
    lengths: list[int],
    hidden_size: int = 128,
    heads: int = 2,
    batch: int = 1,
    rounds: int = 5,
    threads: int = 1,
    gibibytes: float = 8.0,
    least: float = 0.05,
) -> dict[str, Any]:
    """Measure, and write the JSON file `out` with a table (.md) and a picture (.png) beside it.

    `attentions` are names of the zoo; "leap@chunked" is leap in that backend of `leap_attention`.
    A record holds seconds, tokens a second and peak memory of a pass. What would need more than
    `gibibytes`, judged by how memory grew over the last two lengths, is left out from there on.
    """
    attentions = list(dict.fromkeys([BASELINE, *attentions]))
    for name in attentions:
        mechanism(name)
    lengths = sorted(set(lengths))
    if not lengths or min(lengths[0], rounds, batch, threads, hidden_size, heads) < 1:
        raise ValueError("lengths, rounds, batch, threads, width and heads must be at least 1")
    if gibibytes <= 0:
        raise ValueError(f"gibibytes is {gibibytes}: some memory is needed")
    if hidden_size % heads:
        raise ValueError(f"a width of {hidden_size} cannot be shared by {heads} heads")
    json_file(out)
    records: list[dict[str, Any]] = []
    with limited(threads):
        for length in lengths:
            for scope, visible in CASES:
                fitting = [
                    name
                    for name in attentions
                    if (visible == "all" or attention_class(mechanism(name)[0]).traits.causal)
                    and _expected_bytes(records, name, scope, visible, length) < gibibytes * 2**30
                ]
                work = {
                    n: _work(scope, n, visible, length, hidden_size, heads, batch) for n in fitting
                }
                for which in PASSES:
                    runs = {name: made[which] for name, made in work.items()}
                    label = f"{scope}, {visible}, {which}, {length}"
                    taken = seconds(runs, rounds, least, label=label)
                    records += [
                        {
                            "attention": name,
                            "scope": scope,
                            "visible": visible,
                            "pass": which,
                            "length": length,
                            "seconds": spread(taken[name]),
                            "rounds": taken[name],
                            "tokens_a_second": batch * length / statistics.median(taken[name]),
                            "peak_bytes": peak_bytes(runs[name]),
                        }
                        for name in fitting
                    ]
        result = {
            "signature": signature(
                attentions=attentions,
                lengths=lengths,
                hidden_size=hidden_size,
                heads=heads,
                batch=batch,
                rounds=rounds,
                gibibytes=gibibytes,
            ),
            "tipping": tipping_points(records),
            "records": records,
        }
    write_json(out, result)
    out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    plots.profile(result, out.with_suffix(".png"))
    return result


def mechanism(name: str) -> tuple[str, dict[str, Any]]:
    """The attention that is meant, and its options.

    Raises ValueError for an unknown one, and for a backend where there is none to choose.
    """
    attention, _, backend = name.partition("@")
    kind = attention_class(attention)
    if not backend:
        return attention, {}
    if "backend" not in kind.options():
        raise ValueError(f"{name}: {attention} has no backends to choose from")
    known("backend", backend, BACKENDS)
    return attention, {"backend": backend}


def _expected_bytes(
    records: list[dict[str, Any]], name: str, scope: str, visible: str, length: int
) -> float:
    """Memory of a training step at this length, had it grown on as between the last two lengths."""
    known = {
        record["length"]: record["peak_bytes"]
        for record in records
        if (record["attention"], record["scope"], record["visible"], record["pass"])
        == (name, scope, visible, "training")
    }
    if len(known) < 2:
        return 0.0
    (short, less), (long, more) = sorted(known.items())[-2:]
    power = math.log(more / less) / math.log(long / short)
    return more * (length / long) ** power


def _work(
    scope: str, name: str, visible: str, length: int, hidden: int, heads: int, batch: int
) -> dict[str, Callable[[], object]]:
    """The passes of one layer or of a model, the classifier or the language model, on random input
    of full length."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module: torch.nn.Module
    attention, options = mechanism(name)
    if scope == "layer":
        kind = attention_class(attention)
        module = MultiHeadAttention(kind(heads, hidden // heads, length, **options))
        x = torch.randn(batch, length, hidden, device=device)

        def forward() -> torch.Tensor:
            y: torch.Tensor = module(x, visible=visible)
            return y.sum()

    else:
        config = LeaPformerConfig(
            vocab_size=256,
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            attention=attention,
            attention_options=options,
            max_position_embeddings=length,
            pad_token_id=None,
        )
        causal = visible == "causal"
        module = (LeaPformerForCausalLM if causal else LeaPformerForSequenceClassification)(config)
        ids = torch.randint(256, (batch, length), device=device)
        no_cache = {"use_cache": False} if causal else {}

        def forward() -> torch.Tensor:
            y: torch.Tensor = module(ids, **no_cache).logits
            return y.sum()

    module.to(device)

    def infer() -> None:
        module.eval()
        with torch.inference_mode():
            forward()

    def train() -> None:
        module.train()
        forward().backward()
        module.zero_grad()

    return {"forward": infer, "training": train}
