"""The configuration of the speech translator."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LeaPformerSpeechConfig(PreTrainedConfig):
    """What makes up a speech translator; the paper's sizes by default.

    Args:
        vocab_size: number of target token ids.
        num_mel_bins: channels of a frame of sound; frames come each 10 ms, states each 40 ms.
        hidden_size: width of the model.
        encoder_layers, decoder_layers: number of blocks.
        num_attention_heads: heads; divides hidden_size.
        intermediate_size: width inside the feed-forward nets.
        encoder_attention, decoder_attention, cross_attention: names of `leapformer.ATTENTIONS`.
        attention_options: further arguments of mechanisms, by place: {"cross": {"hidden": 8}}, with
            "encoder", "decoder" and "cross" as places.
        encoder_chunk: states that are encoded together and see each other; None: all, which cannot
            be streamed.
        encoder_convolution, decoder_convolution: taps of a short convolution before each
            self-attention; 0 for none.
        learned_progress: address cross-attention by how much has been said (`leapformer.progress`);
            False is the paper's form, content alone.
        wait_ratio: states of a source unit: so many are read before each further token (the
            pre-decision ratio).
        ctc_vocab_size: token ids of transcripts, blank included, for a second head on the encoder;
            None for none.
        ctc_weight: of its loss against that of the translation; both are summed and divided by the
            tokens of the translation.
        label_smoothing: of the translation's loss.
        max_source_positions, max_target_positions: states and tokens of the longest sequence, for
            mechanisms that must know it.
        hidden_dropout_prob: dropout after embeddings, attention and feed-forward nets.
        layer_norm_eps: epsilon of the norms.
        initializer_range: standard deviation of the embeddings at the start.
    """

    model_type = "leapformer_speech"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    vocab_size: int = 10_000
    num_mel_bins: int = 80
    hidden_size: int = 256
    encoder_layers: int = 12
    decoder_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    encoder_attention: str = "leap"
    decoder_attention: str = "leap"
    cross_attention: str = "leap"
    attention_options: dict[str, dict[str, Any]] | None = None
    encoder_chunk: int | None = 9
    encoder_convolution: int = 16
    decoder_convolution: int = 4
    learned_progress: bool = True
    wait_ratio: int = 9
    ctc_vocab_size: int | None = None
    ctc_weight: float | int = 0.3
    label_smoothing: float | int = 0.1
    max_source_positions: int = 3000
    max_target_positions: int = 1024
    hidden_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 1
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
