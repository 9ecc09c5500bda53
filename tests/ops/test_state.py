"""A state is a value of constant size that can be moved, chosen from and cut off."""

import torch

from leapformer import LeapState, leap_attention


def filled(batch: int = 3) -> LeapState:
    state = LeapState.empty(batch, 2, 4, 5)
    return state.extend(
        torch.randn(batch, 2, 9, 4), torch.randn(batch, 2, 9, 5), torch.rand(batch, 2, 9)
    )


def test_its_two_parts_are_the_design_s_m_and_z():
    k, v, p = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 5), torch.rand(1, 2, 9)
    state = LeapState.empty(1, 2, 4, 5).extend(k, v, p)
    angle = p[..., None] * torch.pi / 2
    wide = torch.cat([k.relu() * angle.cos(), k.relu() * angle.sin()], -1)
    torch.testing.assert_close(state.kv, wide.mT @ v)
    torch.testing.assert_close(state.norm, wide.sum(2))


def test_rows_of_the_batch_are_selected_reordered_and_repeated():
    state, q, p = filled(), torch.randn(3, 2, 6, 4), torch.rand(3, 2, 6)
    rows = torch.tensor([2, 0, 0, 1])
    expected = state.read(q, p)[rows]
    torch.testing.assert_close(state.select(rows).read(q[rows], p[rows]), expected)


def test_an_empty_state_answers_zeros():
    state = LeapState.empty(2, 2, 4, 5)
    assert torch.equal(
        state.read(torch.randn(2, 2, 3, 4), torch.rand(2, 2, 3)), torch.zeros(2, 2, 3, 5)
    )


def test_it_is_compared_by_identity_and_shown_by_its_size():
    state = filled()
    assert state == state
    assert state != filled()
    assert repr(state) == "LeapState([3, 2, 8, 6], torch.float32, cpu)"


def test_autocast_reads_in_half_what_was_summed_in_float32():
    state, q, p = filled(), torch.randn(3, 2, 6, 4), torch.rand(3, 2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert state.read(q, p).dtype == torch.bfloat16
        assert state.extend(q, torch.randn(3, 2, 6, 5), p).sums.dtype == torch.float32


def test_to_moves_it_and_detach_cuts_it_off():
    assert filled().to("meta").sums.device.type == "meta"
    k = torch.randn(1, 2, 9, 4, requires_grad=True)
    state = LeapState.empty(1, 2, 4, 5).extend(k, torch.randn(1, 2, 9, 5), torch.rand(1, 2, 9))
    assert state.sums.requires_grad
    assert not state.detach().sums.requires_grad


def test_gradients_flow_through_it_from_piece_to_piece():
    q, k, v = torch.randn(3, 1, 2, 20, 4, dtype=torch.float64).requires_grad_()
    p = torch.rand(1, 2, 20, dtype=torch.float64)
    whole = leap_attention(q, k, v, p, p, visible="causal")
    state, pieces = None, []
    for part in (slice(0, 7), slice(7, 8), slice(8, 20)):
        inputs = (x[:, :, part] for x in (q, k, v, p, p))
        y, state = leap_attention(*inputs, visible="causal", state=state, return_state=True)
        pieces.append(y)
    seed = torch.randn(1, 2, 20, 4, dtype=torch.float64)
    expected = torch.autograd.grad(whole, (q, k, v), seed)
    found = torch.autograd.grad(torch.cat(pieces, 2), (q, k, v), seed)
    torch.testing.assert_close(found, expected)
