"""The configuration of every LeaPformer model."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LeaPformerConfig(PreTrainedConfig):
    """What makes up a model. Unknown attentions are refused when the model is built.

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the model.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads; divides hidden_size.
        intermediate_size: width inside the feed-forward nets.
        attention: a name of `leapformer.zoo.ATTENTIONS`.
        attention_options: further arguments of that mechanism, such as {"hidden": 16} for leap.
        max_position_embeddings: the longest sequence, for learned positions and for mechanisms
            that must know it.
        position_embedding: "learned", "sinusoidal", "rotary" (for mechanisms with
            `traits.rotary`) or "none".
        causal: a token sees only those up to itself. Language models set it.
        short_convolution: taps of a short convolution before each attention; 0 for none.
        feed_forward_convolution: taps of one before each feed-forward net; 0 for none.
        qk_norm: queries and keys go through RMS norms of their own, a head at a time.
        adaptive_cutoffs: of a vocabulary sorted by frequency, where bands of ever smaller
            embeddings begin (Baevski and Auli, 2019); None for one band. Language models read it.
        adaptive_factor: by which the width falls from band to band.
        tie_word_embeddings: input and output of a language model share their weights.
        hidden_dropout_prob: dropout after embeddings, attention and feed-forward nets.
        layer_norm_eps: epsilon of the norms.
        pair: classify pairs of sequences, each encoded by itself: two towers, same weights.
        tokenizer_sha256: of the tokenizer.json that the model was trained with, for those who load
            both.
        initializer_range: standard deviation of the embeddings at the start. Linear maps start at
            PyTorch's own scale, which follows their width.
    """

    model_type = "leapformer"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    attention: str = "leap"
    attention_options: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    position_embedding: str = "learned"
    causal: bool = False
    short_convolution: int = 0
    feed_forward_convolution: int = 0
    qk_norm: bool = False
    adaptive_cutoffs: list[int] | None = None
    adaptive_factor: int = 4
    tie_word_embeddings: bool = True
    hidden_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    pair: bool = False
    tokenizer_sha256: str | None = None
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
