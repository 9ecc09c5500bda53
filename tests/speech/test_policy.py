"""Wait-k: what is read as a wait, and that streams write what training sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapformer.tasks.speech.policy import WaitK, parse_wait


@pytest.mark.parametrize(("word", "k"), [("3", 3), (" 12 ", 12), ("all", None), (5, 5)])
def test_a_wait_is_read(word, k):
    assert parse_wait(word) == k


@pytest.mark.parametrize("word", ["0", "-1", "3,5", "few", "", "None", "1.5"])
def test_a_wait_that_is_none_is_refused(word):
    with pytest.raises(ValueError, match="give units of the source, such as 3, or all"):
        parse_wait(word)


@given(k=st.integers(1, 9), ratio=st.integers(1, 9), token=st.integers(0, 30), data=st.data())
def test_the_policy_writes_what_training_sees(k, ratio, token, data):
    policy, states = WaitK(k, ratio), data.draw(st.integers(0, 200))
    seen = policy.visible.counts(token + 1, states)[token]
    needs = policy.needs(token)
    assert seen == min(states, needs)
    assert policy.writes(token, needs, False)
    assert not policy.writes(token, needs - 1, False)
    assert policy.writes(token, 0, True)
    assert not WaitK(None, ratio).writes(token, 10**9, False)


@pytest.mark.parametrize(("k", "ratio"), [(0, 1), (1, 0), (-1, 3)])
def test_a_policy_waits_for_something(k, ratio):
    with pytest.raises(ValueError, match="both are at least 1"):
        WaitK(k, ratio)
