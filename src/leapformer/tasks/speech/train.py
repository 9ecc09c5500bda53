"""One run: one translator, one seed, one recipe, on transformers' Trainer."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import Trainer

from ...models import LeaPformerForSpeechTranslation, LeaPformerSpeechConfig
from ...results import signature
from ..processes import processes
from ..runs import check_run, run
from ..training import StopOnNaN, arguments
from .batches import ByLength, Collator
from .data import SpeechData, load
from .quality import quality
from .recipes import SpeechRecipe

RECOGNITION = "recognition"
"""The folder in a run's of the model whose encoder it starts from."""


def build_model(
    recipe: SpeechRecipe, data: SpeechData, recognise: bool = False
) -> LeaPformerForSpeechTranslation:
    """The translator that the recipe describes, or a recogniser with the same encoder."""
    target = data.transcript_tokenizer if recognise else data.processor.tokenizer
    sizes = [int(split.frames.max()) for split in data.splits.values()]
    config = configuration(
        recipe,
        vocab_size=len(target),
        num_mel_bins=data.processor.feature_extractor.feature_size,
        ctc_vocab_size=len(data.transcript_tokenizer) if recipe.ctc_weight else None,
        max_source_positions=max(sizes) // 4 + 1,
        pad_token_id=target.pad_token_id,
        bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id,
        decoder_start_token_id=target.bos_token_id,
    )
    return LeaPformerForSpeechTranslation(config)


def configuration(recipe: SpeechRecipe, **others: Any) -> LeaPformerSpeechConfig:
    """What the recipe says of the model; `others` depend on the data."""
    return LeaPformerSpeechConfig(
        hidden_size=recipe.hidden_size,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.decoder_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        encoder_attention=recipe.encoder_attention,
        decoder_attention=recipe.decoder_attention,
        cross_attention=recipe.cross_attention,
        encoder_chunk=recipe.encoder_chunk,
        encoder_convolution=recipe.encoder_convolution,
        decoder_convolution=recipe.decoder_convolution,
        learned_progress=recipe.learned_progress,
        wait_ratio=recipe.wait_ratio,
        ctc_weight=recipe.ctc_weight,
        label_smoothing=recipe.label_smoothing,
        hidden_dropout_prob=recipe.dropout,
        initializer_range=recipe.initializer_range,
        **others,
    )


def train(recipe: SpeechRecipe, seed: int, out: Path, folder: Path) -> dict[str, Any]:
    """Train on the utterances in `folder`, translate the test split, and leave `result.json` and
    the model, with its processor, in `out`. Of several processes the first alone has the result.

    With `recognition_steps` a recogniser is trained first, in a folder of `out`, and its encoder is
    where the translator starts from. A run that finished before is not run again; one that was
    killed goes on from its last whole checkpoint, with the losses of an uninterrupted run. Raises
    ValueError where `out` holds a run of something else.
    """
    check_run(out, seed)
    data = load(folder)
    build_model(recipe, data)
    wanted = {
        "task": "speech",
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "data": data.about,
    }
    if recipe.recognition_steps:
        place = out / RECOGNITION
        check_run(place, seed)
        _stage(recipe, seed, place, data, {**wanted, "task": "recognition"}, recognise=True)
    return _stage(recipe, seed, out, data, wanted, recognise=False)


def _stage(
    recipe: SpeechRecipe,
    seed: int,
    out: Path,
    data: SpeechData,
    wanted: dict[str, Any],
    recognise: bool,
) -> dict[str, Any]:
    steps = recipe.recognition_steps if recognise else recipe.steps
    recipe = dataclasses.replace(recipe, steps=steps)

    def build() -> LeaPformerForSpeechTranslation:
        model = build_model(recipe, data, recognise)
        if recipe.recognition_steps and not recognise:
            source = LeaPformerForSpeechTranslation.from_pretrained(out / RECOGNITION / "model")
            model.encoder.load_state_dict(source.encoder.state_dict())
        return model

    def report(trainer: Trainer) -> dict[str, Any]:
        if not processes().is_main_process:
            return {}
        data.processor.save_pretrained(str(out / "model"))
        signed = signature(
            **wanted, precision=recipe.precision, processes=processes().num_processes
        )
        best = trainer.state.best_model_checkpoint  # the trainer's model may be in shards
        model = LeaPformerForSpeechTranslation.from_pretrained(best).to(trainer.args.device)
        found = {} if recognise else {"test": quality(model, data, recipe)}
        return {
            "signature": signed,
            **found,
            "best_step": trainer.state.best_global_step,
            "parameters": model.num_parameters(),
            "curve": trainer.state.log_history,
        }

    trainer = partial(make_trainer, recipe, data=data, seed=seed, out=out, recognise=recognise)
    return run(out, wanted, steps, build, trainer, report)


def make_trainer(
    recipe: SpeechRecipe,
    model: LeaPformerForSpeechTranslation,
    data: SpeechData,
    seed: int,
    out: Path,
    recognise: bool,
) -> Trainer:
    """AdamW, clipped norm, batches of like lengths. An epoch is whole batches: where `batch_size`
    does not divide the training split its last rows, the same in every epoch, are never trained on.
    Raises ValueError as `arguments` does."""
    rows = len(data.splits["train"])
    settings = arguments(
        recipe,
        seed,
        out,
        rows,
        recipe.micro_batch,
        prediction_loss_only=True,
        label_names=["labels"],
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.clip_norm,
        bf16=recipe.precision == "bfloat16",
        lr_scheduler_type=recipe.schedule,
    )
    whole = range(rows // recipe.batch_size * recipe.batch_size)
    lengths = data.splits["train"].frames[: len(whole)]
    order = ByLength(lengths, settings.per_device_train_batch_size, seed)
    return _Trainer(
        model,
        settings,
        train_dataset=Subset(data.splits["train"], whole),
        eval_dataset=data.splits["validation"],
        callbacks=[StopOnNaN()],
        sampler=order,
        training=Collator(data, recipe, seed, order, recognise),
        validation=Collator(data, recipe, recognise=recognise),
    )


class _Trainer(Trainer):
    """A Trainer that takes utterances of like length together; its validation draws nothing."""

    def __init__(
        self, *words: Any, sampler: ByLength, training: Collator, validation: Collator, **how: Any
    ) -> None:
        super().__init__(*words, data_collator=training, **how)
        self.sampler, self.training, self.validation = sampler, training, validation

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        return self.sampler

    def get_eval_dataloader(
        self, eval_dataset: Any = None
    ) -> torch.utils.data.DataLoader[dict[str, Any]]:
        training = self.training
        self.data_collator = self.validation
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training
