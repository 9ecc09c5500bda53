"""How well a translator translates, computed in parallel: what its stream would write."""

from typing import Any

import torch
from sacrebleu import corpus_bleu, corpus_chrf
from tqdm import tqdm

from ...models import LeaPformerForSpeechTranslation
from .batches import Collator
from .data import SpeechData
from .recipes import SpeechRecipe


@torch.inference_mode()
def quality(
    model: LeaPformerForSpeechTranslation, data: SpeechData, recipe: SpeechRecipe
) -> list[dict[str, Any]]:
    """BLEU and chrF of greedy translations of the test split, a record for each of the recipe's
    waits and for all of the source (`wait` 0). Case and punctuation count."""
    model.eval()
    split, collate = data.splits["test"], Collator(data, recipe, training=False)
    count = min(len(split), recipe.test_utterances or len(split))
    order = sorted(range(count), key=lambda i: split.frames[i])
    parts = [order[i : i + recipe.batch_size] for i in range(0, count, recipe.batch_size)]
    records = []
    for wait in sorted({*recipe.waits, 0}, key=lambda k: k or float("inf")):
        found: dict[int, str] = {}
        for part in tqdm(parts, desc=f"wait {wait or 'for all'}", leave=False):
            batch = collate([split[i] for i in part])
            ids = model.generate(
                batch["input_features"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                wait_k=wait or None,
                max_new_tokens=batch["input_features"].shape[1] // 4 + 10,
                do_sample=False,
                num_beams=1,
            )
            texts = data.processor.batch_decode(ids, skip_special_tokens=True)
            found |= dict(zip(part, texts, strict=True))
        written = [found[i] for i in range(count)]
        wanted = [split[i]["translation"] for i in range(count)]
        records.append({"wait": wait, "utterances": count, **scores(written, wanted)})
    return records


def scores(written: list[str], wanted: list[str]) -> dict[str, Any]:
    """BLEU and chrF by sacrebleu, and the share of texts that are exactly right."""
    same = sum(a == b for a, b in zip(written, wanted, strict=True))
    return {
        "bleu": corpus_bleu(written, [wanted]).score,
        "chrf": corpus_chrf(written, [wanted]).score,
        "exact": same / max(1, len(wanted)),
    }
