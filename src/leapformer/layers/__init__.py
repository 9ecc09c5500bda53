"""What stands around an attention: heads, block, embedding. Knows no task."""

from .attention import MultiHeadAttention
from .block import BlockState, TransformerBlock
from .convolution import ShortConvolution
from .embedding import TokenEmbedding

__all__ = [
    "BlockState",
    "MultiHeadAttention",
    "ShortConvolution",
    "TokenEmbedding",
    "TransformerBlock",
]
