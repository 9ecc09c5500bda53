"""Frames of sound to fewer, wider states, each of what was heard up to it."""

import torch
from torch import Tensor, nn


class Subsampling(nn.Module):
    """Frames [B, T, bins] -> states [B, T // 4, hidden] by two convolutions of stride two.

    State j covers frames up to 4j + 3 and none after, so it is there as soon as they are: with
    frames of 10 ms one state each 40 ms. Frames beyond the last four are left over.

    Args:
        bins: channels of a frame.
        hidden: channels of a state.
    """

    factor = 4

    def __init__(self, bins: int, hidden: int) -> None:
        super().__init__()
        self.bins, self.hidden = bins, hidden
        self.halves = nn.ModuleList(
            nn.Conv1d(channels, hidden, kernel_size=3, stride=2) for channels in (bins, hidden)
        )

    def forward(
        self, frames: Tensor, recent: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Also gives the last input of each convolution, [B, 1, channels], to go on from as
        `recent`; to go on, the number of frames must be a multiple of four.

        Raises ValueError for another number of bins.
        """
        if frames.dim() != 3 or frames.shape[-1] != self.bins:
            raise ValueError(f"frames are {list(frames.shape)}: expected [B, T, {self.bins}]")
        x, after = frames, []
        for i, half in enumerate(self.halves):
            x = x[:, : x.shape[1] // 2 * 2]
            before = x.new_zeros(len(x), 1, x.shape[-1]) if recent is None else recent[i]
            x = torch.cat([before, x], 1)
            after.append(x[:, -1:])
            if x.shape[1] < 3:
                x = x.new_zeros(len(x), 0, self.hidden)
            else:
                x = nn.functional.gelu(half(x.mT)).mT
        return x, tuple(after)
