"""What stands around an attention: heads, block, embedding. Knows no task."""

from .attention import MultiHeadAttention
from .block import TransformerBlock
from .embedding import TokenEmbedding

__all__ = ["MultiHeadAttention", "TokenEmbedding", "TransformerBlock"]
