"""Timing takes turns and counts calls; memory is counted, not sampled."""

import pytest
import torch

from leapformer.timing import once, peak_bytes, seconds, spread

MEGABYTES = 2**20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def four_megabytes() -> torch.Tensor:
    return torch.zeros(MEGABYTES, device=DEVICE)


def together() -> None:
    first = four_megabytes()
    second = four_megabytes()
    del first, second


def one_after_the_other() -> None:
    for _ in range(3):
        four_megabytes()


def grown_and_shrunk() -> None:
    together()
    four_megabytes()


@pytest.mark.parametrize(
    ("run", "megabytes"),
    [(four_megabytes, 4), (together, 8), (one_after_the_other, 4), (grown_and_shrunk, 8)],
)
def test_peak_is_what_was_alive_together(run, megabytes):
    before = four_megabytes()  # held before: not counted
    assert peak_bytes(run) == pytest.approx(megabytes * MEGABYTES, rel=0.01)
    assert before.device.type == DEVICE


def test_peak_counts_what_backward_holds():
    x = four_megabytes().requires_grad_()
    # exp keeps its output, sum's gradient is expanded, and the gradient of x is the second block.
    assert peak_bytes(lambda: torch.autograd.grad(x.exp().sum(), x)) == pytest.approx(
        8 * MEGABYTES, rel=0.01
    )


def test_peak_says_nothing_on_the_terminal(capfd):
    peak_bytes(four_megabytes)
    assert capfd.readouterr() == ("", "")


def test_contenders_take_turns_and_a_value_is_seconds_a_call():
    now, order = 0.0, []

    def takes(name: str, duration: float):
        def run() -> None:
            nonlocal now
            now += duration
            order.append(name)

        return run

    taken = seconds(
        {"a": takes("a", 0.125), "b": takes("b", 0.0625), "c": takes("c", 1.0)},
        rounds=3,
        least=0.25,
        clock=lambda: now,
    )
    assert taken == {"a": [0.125] * 3, "b": [0.0625] * 3, "c": [1.0] * 3}
    assert "".join(order) == "aabbcc" + "aabbbbc" * 3


def test_spread_is_median_and_range():
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "low": 1.0, "high": 10.0}


def test_once_is_one_call():
    seen = []
    ticks = iter((3.0, 10.0))
    assert once(lambda: seen.append(1), clock=lambda: next(ticks)) == 7.0
    assert seen == [1]
