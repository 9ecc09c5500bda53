"""Laws of the transformers models, for every attention of the zoo."""

import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from leapformer import LeaPformerConfig, LeaPformerForSequenceClassification, LeaPformerModel
from leapformer.zoo import ATTENTIONS

# transformers 5.23 renamed it; 5.17 knows only this name
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def make_config(attention="leap", **others):
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "num_labels": 3,
    }
    return LeaPformerConfig(attention=attention, **(sizes | others))


def make(cls, *args, **others):
    torch.manual_seed(0)
    return cls(make_config(*args, **others)).eval()


def make_ids(batch=3, length=12):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 2, 1])


@every_attention
@pytest.mark.parametrize(
    ("cls", "auto"),
    [
        (LeaPformerModel, AutoModel),
        (LeaPformerForSequenceClassification, AutoModelForSequenceClassification),
    ],
)
def test_saved_and_loaded_through_auto_gives_identical_outputs(cls, auto, attention, tmp_path):
    model = make(cls, attention)
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]

    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LeaPformerConfig
    assert config.attention == attention
    torch.manual_seed(1)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is cls
    assert not loaded.training
    ids = make_ids()
    assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_a_classifiers_body_loads_as_a_bare_model(tmp_path):
    model = make(LeaPformerForSequenceClassification)
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    ids = make_ids()
    assert torch.equal(body(ids)[0], model.model(ids)[0])


def test_attention_options_reach_the_mechanism_and_the_file(tmp_path):
    model = make(LeaPformerModel, "leap", attention_options={"hidden": 3})
    model.save_pretrained(tmp_path)
    for each in (model, AutoModel.from_pretrained(tmp_path)):
        shapes = [p.shape for p in each.layers[1].attention.attention.leap_q.parameters()]
        assert shapes == [(3, 8), (3,), (1, 3), (1,)]


@every_attention
@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_a_right_padded_batch_equals_each_sequence_alone(attention, dtype):
    lengths, ids = [12, 5, 1], make_ids()
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).to(dtype)
    model = make(LeaPformerForSequenceClassification, attention).double()
    logits = model(ids, attention_mask=mask).logits
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length]).logits
        torch.testing.assert_close(logits[row : row + 1], alone)


@every_attention
def test_a_left_padded_batch_equals_each_sequence_alone(attention):
    lengths, ids = [12, 5, 1], make_ids()
    mask = torch.arange(12) >= 12 - torch.tensor(lengths)[:, None]
    others = {"position_embedding": "none"}
    model = make(LeaPformerForSequenceClassification, attention, **others).double()
    if ATTENTIONS[attention].traits.right_padded:
        with pytest.raises(ValueError, match="pad on the right"):
            model(ids, attention_mask=mask)
        return
    logits = model(ids, attention_mask=mask).logits
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, -length:]).logits
        torch.testing.assert_close(logits[row : row + 1], alone)


@every_attention
def test_what_stands_at_padding_changes_no_real_token(attention):
    ids, mask = make_ids(), torch.ones(3, 12, dtype=torch.long)
    mask[:, 7:] = 0
    model = make(LeaPformerModel, attention)
    other = ids.masked_fill(mask == 0, 0)
    found, expected = (model(x, attention_mask=mask)[0][:, :7] for x in (other, ids))
    assert torch.equal(found, expected)
    assert not torch.allclose(model(other)[0][:, :7], expected)


@every_attention
def test_a_fully_padded_row_trains(attention):
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1] = 0
    model = make(LeaPformerForSequenceClassification, attention)
    out = model(make_ids(), attention_mask=mask, labels=LABELS)
    out.loss.backward()
    assert out.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_attention
def test_gradient_checkpointing_gives_identical_loss_and_gradients(attention):
    found = {}
    for checkpointing in (False, True):
        model = make(LeaPformerForSequenceClassification, attention).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        runs = []
        model.model.layers[0].attention.register_forward_pre_hook(lambda *_, r=runs: r.append(1))
        torch.manual_seed(1)
        loss = model(make_ids(), labels=LABELS).loss
        loss.backward()
        found[checkpointing] = [loss, *(p.grad for p in model.parameters())]
        assert len(runs) == 1 + checkpointing
    assert all(torch.equal(*pair) for pair in zip(*found.values(), strict=True))


@every_attention
@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal", "none"])
def test_inputs_embeds_equal_input_ids(attention, position_embedding):
    ids = make_ids()
    model = make(
        LeaPformerForSequenceClassification, attention, position_embedding=position_embedding
    )
    vectors = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=vectors).logits, model(ids).logits)


@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal", "none"])
def test_only_positions_tell_the_order(position_embedding):
    ids = make_ids()
    model = make(LeaPformerForSequenceClassification, position_embedding=position_embedding)
    same = torch.allclose(model(ids).logits, model(ids.flip(1)).logits, atol=1e-6)
    assert same == (position_embedding == "none")


@every_attention
@pytest.mark.parametrize("cls", [LeaPformerModel, LeaPformerForSequenceClassification])
def test_hidden_states_are_one_more_than_layers(cls, attention):
    model, ids = make(cls, attention, num_hidden_layers=3), make_ids()
    assert model(ids).hidden_states is None
    out = model(ids, output_hidden_states=True)
    assert [h.shape for h in out.hidden_states] == [(3, 12, 16)] * 4
    last = getattr(model, "model", model)(ids).last_hidden_state
    assert torch.equal(out.hidden_states[-1], last)


@every_attention
def test_return_dict_false_gives_a_tuple(attention):
    model, ids = make(LeaPformerForSequenceClassification, attention), make_ids()
    (logits,) = model(ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits)
    loss, logits = model(ids, labels=LABELS, return_dict=False)
    assert loss.shape == ()
    out = model.model(ids, return_dict=False)
    assert isinstance(out, tuple)
    assert torch.equal(out[0], model.model(ids).last_hidden_state)


@every_attention
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
def test_runs_and_trains_in_other_precisions(attention, dtype, position_embedding):
    ids, mask = make_ids(), torch.arange(12) < torch.tensor([[12], [5], [1]])
    others = {"position_embedding": position_embedding}
    model = make(LeaPformerForSequenceClassification, attention, **others)
    expected = model(ids, mask).logits
    model.to(dtype)
    out = model(ids, mask, labels=LABELS)
    out.loss.backward()
    assert out.logits.dtype == dtype
    tolerance = {torch.bfloat16: 0.05, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(out.logits.float(), expected, atol=tolerance, rtol=tolerance)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_attention
def test_trains_under_autocast(attention):
    model = make(LeaPformerForSequenceClassification, attention)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(make_ids(), labels=LABELS)
    out.loss.backward()
    torch.testing.assert_close(out.logits.float(), model(make_ids()).logits, atol=0.05, rtol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_attention
def test_compiles_into_one_graph_equal_to_eager(attention):
    torch.compiler.reset()
    ids, mask = make_ids(), torch.arange(12) < torch.tensor([[12], [5], [1]])
    model = make(LeaPformerForSequenceClassification, attention)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found, expected = [], []
    for results, each in ((found, compiled), (expected, model)):
        model.zero_grad()
        out = each(ids, mask, labels=LABELS)
        out.loss.backward()
        results += [out.logits, out.loss, *(p.grad.clone() for p in model.parameters())]
    torch.testing.assert_close(found, expected)


@every_attention
def test_every_parameter_gets_a_finite_gradient(attention):
    model = make(LeaPformerForSequenceClassification, attention)
    model(make_ids(), labels=LABELS).loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        if p.dim() > 1:
            assert p.grad.any(), name


@every_attention
def test_the_loss_falls_in_training(attention):
    model = make(LeaPformerForSequenceClassification, attention)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(make_ids(), labels=LABELS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_one_label_is_regression():
    model, ids, labels = make(LeaPformerForSequenceClassification, num_labels=1), make_ids(), 2.0
    out = model(ids, labels=torch.full((3,), labels))
    assert out.logits.shape == (3, 1)
    torch.testing.assert_close(out.loss, (out.logits - labels).square().mean())


def test_several_labels_are_cross_entropy():
    out = make(LeaPformerForSequenceClassification)(make_ids(), labels=LABELS)
    expected = -out.logits.log_softmax(-1)[torch.arange(3), LABELS].mean()
    torch.testing.assert_close(out.loss, expected)


def test_multi_label_is_binary_cross_entropy():
    problem = "multi_label_classification"
    model = make(LeaPformerForSequenceClassification, problem_type=problem)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    out = model(make_ids(), labels=labels)
    signs = 2 * labels - 1
    torch.testing.assert_close(out.loss, -(signs * out.logits).sigmoid().log().mean())


def test_a_seed_reproduces_the_initial_weights():
    first, second = (make(LeaPformerForSequenceClassification).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    other = LeaPformerForSequenceClassification(make_config()).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_linear_maps_start_at_pytorchs_scale_and_embeddings_at_the_configured_one():
    model = make(LeaPformerModel, hidden_size=64, vocab_size=500, initializer_range=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            assert bound / 2 < module.weight.abs().max() <= bound
    vectors = model.get_input_embeddings().weight.detach()
    assert not vectors[0].any()  # the padding id
    assert vectors[1:].std().item() == pytest.approx(0.3, rel=0.05)


def test_input_embeddings_can_be_replaced_and_resized():
    model = make(LeaPformerForSequenceClassification)
    model.resize_token_embeddings(60)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 60
    assert model(torch.tensor([[59]])).logits.isfinite().all()


def test_refuses_an_empty_sequence():
    with pytest.raises(ValueError, match="empty"):
        make(LeaPformerModel)(torch.zeros(2, 0, dtype=torch.long))


def test_refuses_both_and_neither_of_ids_and_vectors():
    model, ids = make(LeaPformerModel), make_ids()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.parametrize("shape", [(3, 11), (1, 12), (12,), (3, 1, 1, 12)])
def test_refuses_an_attention_mask_of_another_shape(shape):
    for cls in (LeaPformerModel, LeaPformerForSequenceClassification):
        with pytest.raises(ValueError, match=r"attention_mask .*\[3, 12\]"):
            make(cls)(make_ids(), attention_mask=torch.ones(shape))


def test_refuses_a_sequence_beyond_the_learned_positions():
    model = make(LeaPformerModel, max_position_embeddings=12)
    model(make_ids(length=12))
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model(make_ids(length=13))


@pytest.mark.parametrize("position_embedding", ["sinusoidal", "none"])
def test_other_positions_and_learned_proportions_know_no_longest_sequence(position_embedding):
    others = {"max_position_embeddings": 4, "position_embedding": position_embedding}
    assert make(LeaPformerModel, "leap", **others)(make_ids())[0].isfinite().all()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 16 .* num_attention_heads 3"),
        ({"attention": "laep"}, "did you mean leap"),
        ({"position_embedding": "none?"}, "'none.'.* learned, sinusoidal, rotary, none"),
        ({"position_embedding": "rotary"}, "rotary positions turn dot products"),
    ],
)
def test_refuses_a_configuration_that_makes_no_model(others, message):
    with pytest.raises(ValueError, match=message):
        LeaPformerModel(make_config(**others))


def test_trainer_trains_one_step_with_gradient_checkpointing(tmp_path):
    model = make(LeaPformerForSequenceClassification)
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = [
        {"input_ids": ids, "attention_mask": torch.ones(12, dtype=torch.long), "labels": label}
        for ids, label in zip(make_ids(), LABELS, strict=True)
    ]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=1,
        gradient_checkpointing=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    result = trainer.train()
    assert model.is_gradient_checkpointing
    assert math.isfinite(result.training_loss)
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert trainer.predict(data).predictions.shape == (3, 3)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


@every_attention
def test_a_pair_is_two_sequences_through_the_same_model(attention):
    ids, mask = make_ids(6).view(3, 2, 12), torch.ones(3, 2, 12, dtype=torch.bool)
    mask[0, 0, 7:] = mask[2, 1, 3:] = False
    model = make(LeaPformerForSequenceClassification, attention, pair=True).double()
    with torch.no_grad():
        found = model(ids, attention_mask=mask, labels=LABELS)
        single = make(LeaPformerForSequenceClassification, attention).double()
        single.model.load_state_dict(model.model.state_dict())
        means = []
        for tokens, real in zip(ids.flatten(0, 1), mask.flatten(0, 1), strict=True):
            means.append(single.model(tokens[real][None])[0].mean(1))
        a, b = torch.cat(means).view(3, 2, -1).unbind(1)
        logits = model.head(torch.cat([a, b, a * b, a - b], -1))
    torch.testing.assert_close(found.logits, logits)
    expected = torch.nn.functional.cross_entropy(logits.float(), LABELS)
    torch.testing.assert_close(found.loss.float(), expected)


def test_a_model_of_pairs_refuses_single_sequences():
    model = make(LeaPformerForSequenceClassification, pair=True)
    for ids in (make_ids(), make_ids(9).view(3, 3, 12)):
        with pytest.raises(ValueError, match=r"expects \[B, 2, N\]"):
            model(ids)


def test_a_pair_can_be_given_as_vectors():
    model = make(LeaPformerForSequenceClassification, pair=True)
    ids = make_ids(6).view(3, 2, 12)
    vectors = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=vectors).logits, model(ids).logits)
