"""What stands around an attention: heads, block, embedding. Knows no task."""

from .attention import MultiHeadAttention
from .block import BlockState, TransformerBlock
from .convolution import ShortConvolution
from .embedding import TokenEmbedding
from .subsampling import Subsampling

__all__ = [
    "BlockState",
    "MultiHeadAttention",
    "ShortConvolution",
    "Subsampling",
    "TokenEmbedding",
    "TransformerBlock",
]
