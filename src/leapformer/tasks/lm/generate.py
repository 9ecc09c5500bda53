"""Text that goes on, token by token, for as long as one likes: of a linear mechanism in the memory
of the first one."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...models import LeaPformerCache, LeaPformerForCausalLM
from ..pretrained import fingerprint, load_pretrained
from .corpus import natural, text_of
from .data import Tokens, encode, load
from .evaluate import check_length
from .tokens import UNKNOWN


def load_model(folder: Path) -> tuple[LeaPformerForCausalLM, PreTrainedTokenizerFast]:
    """The language model and the tokenizer that a run left; raises as `load_pretrained`."""
    return load_pretrained(folder, LeaPformerForCausalLM, PreTrainedTokenizerFast)


def go_on(
    model: LeaPformerForCausalLM,
    ids: list[int],
    count: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """`count` tokens after `ids`, each drawn from what the model expects; temperature 0 takes the
    likeliest. What is kept between tokens is one state a layer; of linear mechanisms it does not
    grow.

    Raises ValueError at once for an empty prompt, options out of range, and more tokens than the
    model can read.
    """
    if not ids:
        raise ValueError("the prompt is empty: give at least one token")
    if count < 0 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"count {count}, temperature {temperature}, top_k {top_k}, top_p {top_p}: expected at "
            "least 0 for the first three and a top_p in (0, 1]"
        )
    check_length(model, len(ids) + count - 1)
    narrow = LogitsProcessorList()
    if temperature not in (0, 1):
        narrow.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        narrow.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        narrow.append(TopPLogitsWarper(top_p))
    return _drawn(model, ids, count, None if temperature == 0 else narrow, seed)


@torch.inference_mode()
def _drawn(
    model: LeaPformerForCausalLM,
    ids: list[int],
    count: int,
    narrow: LogitsProcessorList | None,
    seed: int,
) -> Iterator[int]:
    """Tokens drawn from the narrowed probabilities, or, where `narrow` is None, the likeliest."""
    device = next(model.parameters()).device
    chance, cache = torch.Generator(device).manual_seed(seed), LeaPformerCache()
    new = torch.tensor([ids], device=device)
    for _ in range(count):
        logits = model(new, cache=cache, logits_to_keep=1).logits[:, -1].float()
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("the model's logits are no numbers: its weights are damaged")
        if narrow is None:
            new = logits.argmax(-1, keepdim=True)
        else:
            scores = narrow(new, logits)
            new = torch.multinomial(scores.softmax(-1), 1, generator=chance)
        yield int(new)


def written(
    model: LeaPformerForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    count: int,
    ignore_eos: bool = False,
    **options: Any,
) -> Iterator[str]:
    """The prompt, and then up to `count` tokens more, as pieces of text; options are `go_on`'s.

    At `<eos>` the document ends and so does the text, unless `ignore_eos`: then the next document
    begins after an empty line. In a vocabulary of words `<eos>` ends lines too, and a new one
    begins. What is no whole character yet waits for the rest of it.
    """
    (end, *ids) = whole = prompt_ids(tokenizer, prompt)
    tokens = go_on(model, whole, count, **options)
    yield prompt
    ends_lines = encode(tokenizer, "\n") == [end]
    stream = DecodeStream([] if prompt[-1:].isspace() else ids)  # words: no second blank
    for token in tokens:
        if token != end:
            yield stream.step(tokenizer.backend_tokenizer, token) or ""
        elif ends_lines or ignore_eos:
            yield "\n" if ends_lines else "\n\n"
            stream = DecodeStream()
        else:
            return


def text_tokens(tokenizer: PreTrainedTokenizerFast, path: Path) -> Tokens:
    """A text file as one document, behind the end of the one before."""
    text = text_of(path)
    ids = np.array(prompt_ids(tokenizer, text), np.int64)
    return Tokens.join([ids], len(text.encode("utf-8")), len(text.split()))


def natural_tokens(tokenizer: PreTrainedTokenizerFast, path: Path) -> Tokens:
    """A file of WikiText as published, as `natural` text, like `text_tokens`. Its `<unk>` are read
    but not to be predicted, nor counted as bytes and words: they stand for rare words in a corpus
    of a fixed vocabulary and are no text."""
    parts = re.split(f"( ?{UNKNOWN})", natural(text_of(path)))
    found = [[tokenizer.eos_token_id], *(encode(tokenizer, part) for part in parts)]
    scored = np.repeat([True, *(i % 2 == 0 for i in range(len(parts)))], [*map(len, found)])
    text = parts[::2]
    sizes = (sum(len(part.encode()) for part in text), sum(len(part.split()) for part in text))
    ids = np.array([*chain(*found)], np.int64)
    return replace(Tokens.join([ids], *sizes), scored=scored)


def load_text(
    model: Path,
    tokenizer: PreTrainedTokenizerFast,
    text: Path | None,
    data: Path | None,
    as_natural: bool = False,
) -> Tokens:
    """The tokens of a text file, perhaps `natural`, or of the test split of prepared data.

    Raises ValueError where not one of the two is given, and where the data were made with another
    tokenizer than the model's.
    """
    if text is not None and data is None:
        return (natural_tokens if as_natural else text_tokens)(tokenizer, text)
    if data is None or text is not None:
        raise ValueError("give either --text, a file, or --data, what lm prepare left")
    if as_natural:
        raise ValueError("--natural is for --text, a file of WikiText as published")
    splits, _, about = load(data)
    if about["tokenizer"] != fingerprint(model.expanduser()):
        raise ValueError(
            f"{data} and {model} have different tokenizers: give the data that the model was "
            "trained on, or --text"
        )
    return splits["test"]


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The end of the document before, and the prompt. Raises ValueError for what has no UTF-8 form,
    as bytes of another encoding have not."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not UTF-8 text (character {error.start})") from None
    return [tokenizer.eos_token_id, *encode(tokenizer, prompt)]
