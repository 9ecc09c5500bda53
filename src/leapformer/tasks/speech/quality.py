"""How well a translator translates, many streams at a time."""

from typing import Any

from sacrebleu import corpus_bleu, corpus_chrf
from tqdm import tqdm

from ...models import LeaPformerForSpeechTranslation
from .data import SpeechData
from .recipes import SpeechRecipe
from .translator import Translator


def quality(
    model: LeaPformerForSpeechTranslation, data: SpeechData, recipe: SpeechRecipe
) -> list[dict[str, Any]]:
    """BLEU and chrF of what streams write of the test split, a record for each of the recipe's
    waits and for all of the source (`wait` 0). Case and punctuation count."""
    split = data.splits["test"]
    count = min(len(split), recipe.test_utterances or len(split))
    order = sorted(range(count), key=lambda i: split.frames[i])
    parts = [order[i : i + recipe.batch_size] for i in range(0, count, recipe.batch_size)]
    wanted = [split[i]["translation"] for i in range(count)]
    records = []
    for wait in sorted({*recipe.waits, 0}, key=lambda k: k or float("inf")):
        translator = Translator(model, data.processor, wait or None)
        found: dict[int, str] = {}
        for part in tqdm(parts, desc=f"wait {wait or 'for all'}", leave=False):
            texts = translator.translate([split[i]["input_features"] for i in part])
            found |= dict(zip(part, texts, strict=True))
        written = [found[i] for i in range(count)]
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
