"""What a model is given, checked, and the places its tokens stand at."""

import torch
from torch import Tensor

from ..ops import token_positions
from ..ops.checks import forbid

_WHOLE = (torch.int32, torch.int64)


def given_input(input_ids: Tensor | None, inputs_embeds: Tensor | None, hidden: int) -> Tensor:
    """The one of the two that is given: whole numbers [B, N], or vectors [B, N, hidden]."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    given = inputs_embeds if input_ids is None else input_ids
    assert given is not None
    if input_ids is not None and input_ids.dtype not in _WHOLE:
        raise TypeError(f"input_ids are {input_ids.dtype}: expected whole numbers, int64 or int32")
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(f"input_ids are {list(input_ids.shape)}: expected a batch, [B, N]")
    if inputs_embeds is not None and (given.dim() != 3 or given.shape[2] != hidden):
        raise ValueError(
            f"inputs_embeds are {list(given.shape)}: expected [B, N, hidden_size = {hidden}]"
        )
    if given.shape[1] == 0:
        raise ValueError("the sequences are empty: a model needs at least one token")
    return given


def real_tokens(attention_mask: Tensor | None, given: Tensor, before: int) -> Tensor | None:
    """bool [B, N], True where a token of the input is real, of a mask that may also cover the
    `before` columns that came earlier."""
    if attention_mask is None:
        return None
    rows, columns = given.shape[:2]
    if attention_mask.shape not in ((rows, columns), (rows, before + columns)):
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}: expected [B, N] = {[rows, columns]}"
            + (f" or, with what came before, {[rows, before + columns]}" if before else "")
        )
    return attention_mask[:, -columns:].bool()


def check_labels(labels: Tensor | None, given: Tensor, logits_to_keep: int | Tensor) -> None:
    """A label for each token, and the logits of all."""
    if labels is None:
        return
    if labels.shape != given.shape[:2]:
        raise ValueError(
            f"labels are {list(labels.shape)}: expected one for each token, "
            f"[B, N] = {list(given.shape[:2])}"
        )
    if not isinstance(logits_to_keep, int) or logits_to_keep:
        raise ValueError("labels want the logits of every token: leave out logits_to_keep")


def packed_bounds(
    given: Tensor, cu_seqlens: Tensor | None, positions: Tensor | None, alone: bool
) -> Tensor | None:
    """Bounds, int [documents + 1], of the documents packed into one row; None where there is one.

    They are `cu_seqlens`, or what `positions` [1, N] tell that begin at 0 anew, as those of
    `DataCollatorWithFlattening` do; those are read only where the row is `alone`, without a mask
    and a cache. Raises ValueError where rows of a batch begin anew.
    """
    rows, columns = given.shape[:2]
    if positions is not None:
        if positions.dtype not in _WHOLE:
            raise TypeError(f"position_ids are {positions.dtype}: expected whole numbers")
        if positions.shape not in ((columns,), (1, columns), (rows, columns)):
            raise ValueError(
                f"position_ids are {list(positions.shape)}: expected [N] or [B, N] = "
                f"{[rows, columns]}"
            )
    if cu_seqlens is not None:
        if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in _WHOLE:
            raise ValueError(
                f"cu_seq_lens_q is {cu_seqlens.dtype} {list(cu_seqlens.shape)}: expected whole "
                "numbers, [documents + 1]"
            )
        return cu_seqlens
    if positions is None or positions.dim() == 1 or not alone:
        return None
    anew = positions[:, 1:] == 0
    if len(positions) > 1:
        forbid(
            anew.any(),
            "position_ids begin at 0 anew inside a row of a batch: pack documents into one row, "
            "or tell padding with attention_mask",
        )
        return None
    starts = anew[0].nonzero().flatten() + 1
    if not len(starts):
        return None
    ends = starts.new_tensor([0]), starts, starts.new_tensor([columns])
    return torch.cat(ends).int()


def token_places(
    given: Tensor, key_mask: Tensor | None, seen: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The place of each token in its sequence, int64 [N] or [B, N]: real tokens are counted, those
    `seen` [B] before included."""
    columns, device = given.shape[1], given.device
    if key_mask is None:
        places = token_positions(columns, cu_seqlens, device)
        return places if seen is None else seen.unsqueeze(1) + places
    counted = key_mask.cumsum(1)
    if cu_seqlens is not None:
        first = torch.arange(columns, device=device) - token_positions(columns, cu_seqlens, device)
        counted = counted - (counted - key_mask.long())[:, first]
    places = (counted - 1).clamp_min(0)
    return places if seen is None else seen.unsqueeze(1) + places
