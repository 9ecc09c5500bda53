"""Accuracy against length: answers generated greedily, out of what the model said before."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...models import LeaPformerCache
from .recipes import ProbeRecipe
from .tasks import evaluation_rows


@torch.inference_mode()
def generate(model: Any, prompts: Tensor, count: int) -> Tensor:
    """The likeliest `count` tokens [B, count] after prompts [B, P], each after those before."""
    cache, new, found = LeaPformerCache(), prompts, []
    for _ in range(count):
        logits = model(new, cache=cache, logits_to_keep=1).logits
        new = logits[:, -1].argmax(-1, keepdim=True)
        found.append(new)
    return torch.cat(found, 1)


def score(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Shares of answers [B, A] without a mistake, their `<eos>` included, and of characters that
    are right, without it."""
    right = (found == wanted).double()
    return {
        "exact": right.amin(1).mean().item(),
        "characters": right[:, :-1].mean().item(),
    }


def measure(recipe: ProbeRecipe, model: Any, device: torch.device) -> list[dict[str, Any]]:
    """The scores at every length of the recipe."""
    records = []
    for length in tqdm(recipe.evaluate_lengths, desc="lengths", leave=False):
        prompts, answers = evaluation_rows(recipe, length)
        parts = [
            generate(model, part.to(device), answers.shape[1]).cpu() for part in prompts.split(64)
        ]
        scores = score(torch.cat(parts), answers)
        records.append({"length": length, "rows": len(answers), **scores})
    return records
