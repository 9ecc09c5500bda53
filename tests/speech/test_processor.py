"""The processor: audio to features, texts to labels, and both from one folder."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

from leapformer.models import LeaPformerFeatureExtractor, LeaPformerSpeechProcessor
from leapformer.tasks.speech.tokens import tokenizer_of, train_unigram

TEXTS = ["zweiundvierzig siebzehn", "siebzehn", "vierzig zwei"]
AUDIO = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (2000, 900, 5000)]


@pytest.fixture(scope="module")
def processor() -> LeaPformerSpeechProcessor:
    extractor = LeaPformerFeatureExtractor(mean=[7.5] * 80, std=[2.0] * 80)
    return LeaPformerSpeechProcessor(extractor, tokenizer_of(train_unigram(TEXTS, 40)))


def test_audio_and_text_become_a_batch_for_a_model(processor):
    batch = processor(audio=AUDIO, text=TEXTS, sampling_rate=16_000, return_tensors="pt")
    assert set(batch) == {"input_features", "attention_mask", "labels"}
    alone = processor.feature_extractor(AUDIO, return_tensors="pt")
    assert batch["input_features"].equal(alone["input_features"])
    assert batch["attention_mask"].equal(alone["attention_mask"])
    assert batch["labels"].dtype == torch.int64
    for row, text in zip(batch["labels"].tolist(), TEXTS, strict=True):
        ids = processor.tokenizer(text)["input_ids"]
        assert ids[-1] == processor.tokenizer.eos_token_id
        assert row == ids + [-100] * (len(row) - len(ids))
    assert (batch["labels"] == -100).any()


def test_either_may_stand_alone(processor):
    assert set(processor(audio=AUDIO[0])) == {"input_features", "attention_mask"}
    labels = processor(text=TEXTS[0])["labels"]
    assert labels == [processor.tokenizer(TEXTS[0])["input_ids"]]
    assert processor(text=TEXTS, return_tensors="pt")["labels"].shape[0] == 3
    with pytest.raises(ValueError, match="neither audio nor text is given"):
        processor()


def test_what_the_extractor_refuses_is_refused(processor):
    with pytest.raises(ValueError, match="8000 Hz: expected 16000 Hz"):
        processor(audio=AUDIO, sampling_rate=8000)
    with pytest.raises(TypeError, match="int16"):
        processor(audio=[np.zeros(900, np.int16)])
    assert processor(audio=AUDIO, pad_to_multiple_of=4)["input_features"][0].shape == (32, 80)


def test_labels_come_back_as_texts(processor):
    labels = processor(text=TEXTS, return_tensors="pt")["labels"]
    for rows in (labels, labels.numpy(), labels.tolist(), [row[row >= 0] for row in labels]):
        assert processor.batch_decode(rows, skip_special_tokens=True) == TEXTS
    assert processor.batch_decode(labels)[1] == "siebzehn</s>"
    assert processor.decode(labels[0], skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize("loader", [AutoProcessor, LeaPformerSpeechProcessor])
def test_it_comes_back_from_its_folder(processor, tmp_path, loader):
    processor.save_pretrained(tmp_path)
    again = loader.from_pretrained(tmp_path)
    assert type(again) is LeaPformerSpeechProcessor
    assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    one, two = (each(AUDIO, TEXTS, return_tensors="pt") for each in (processor, again))
    assert all(one[name].equal(two[name]) for name in one)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.to_dict() == processor.feature_extractor.to_dict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXTS)["input_ids"] == processor.tokenizer(TEXTS)["input_ids"]


def test_its_files_are_json_alone(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    for file in tmp_path.iterdir():
        json.loads(file.read_text(encoding="utf-8"))
