"""The table of visibilities: what each name means for n_i."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leapformer import Visible
from leapformer.ops.chunked import TILE, tiles

sizes = st.integers(0, 300)


@given(n=sizes, s=sizes, c=st.integers(1, 50), r=st.integers(0, 50), k=st.integers(0, 20))
def test_rules_are_their_formulas(n, s, c, r, k):
    formulas = {
        Visible.all(): lambda i: s,
        Visible.causal(): lambda i: min(s, i + 1),
        Visible.causal(prefix=r): lambda i: min(s, r + i + 1),
        Visible.chunks(c, r): lambda i: min(s, (i // c + 1) * c + r),
        Visible.wait_k(k, c): lambda i: min(s, c * (k + i)),
    }
    for rule, formula in formulas.items():
        expected = [formula(i) for i in range(n)]
        assert rule.counts(n, s).tolist() == expected
        assert [rule.count(i, s) for i in range(n)] == expected


@given(data=st.data(), s=sizes)
def test_tiles_cover_all_once_and_hide_what_must_be_hidden(data, s):
    counts = sorted(data.draw(st.lists(st.integers(0, s), max_size=300)))
    plan = tiles(torch.tensor(counts, dtype=torch.long), s, torch.device("cpu"))
    assert [i for t in plan for i in range(t.queries.start, t.queries.stop)] == list(
        range(len(counts))
    )
    assert [j for t in plan for j in range(t.keys.start, t.keys.stop)] == list(range(s))
    for queries, keys, hidden, turn in plan:
        assert turn is None
        assert queries.stop - queries.start + keys.stop - keys.start <= TILE
        for i in range(queries.start, queries.stop):
            assert keys.start <= counts[i] <= keys.stop
            if hidden is None:
                assert counts[i] == keys.stop
            else:
                row = hidden[i - queries.start].tolist()
                assert row == [counts[i] <= j for j in range(keys.start, keys.stop)]


def test_rules_with_huge_numbers_see_everything():
    huge = 2**62
    for rule in (Visible.wait_k(huge, 4), Visible.wait_k(1, huge), Visible.causal(huge)):
        assert rule.counts(3, 10).tolist() == [rule.count(i, 10) for i in range(3)] == [10] * 3


def test_rules_are_values():
    assert Visible.wait_k(3, 2) == Visible.wait_k(3, 2) != Visible.wait_k(3, 1)
    with pytest.raises(AttributeError):
        Visible.causal().size = 2
