"""Generated cases for the laws of the attention."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from leapformer import LeapState, Visible, leap_attention, ops
from leapformer.ops.build import compiler, find

native = pytest.mark.skipif(
    compiler() is None and find() is None,
    reason="the native kernel needs a C++ compiler, and there is none",
)
"""Of tests that run the native kernel. It is built at its first use, and kept between runs."""
BACKENDS = [
    pytest.param(n, marks=native) if n == "native" else n for n in ops.BACKENDS if n != "triton"
]
"""Those whose laws are told in float64; `tests/ops/test_triton.py` has the laws of the other."""
FAST = [backend for backend in BACKENDS if backend != "reference"]

LENGTHS = (0, 1, 2, 63, 64, 65, 127, 129, 200)


@dataclass
class Case:
    """Arguments of `leap_attention`, in float64."""

    q: Tensor
    k: Tensor
    v: Tensor
    p_q: Tensor | None
    p_k: Tensor | None
    visible: str | Visible | Tensor
    key_mask: Tensor | None
    state: LeapState | None
    feature_map: str
    eps: float

    def __call__(self, backend: str, return_state: bool = False, **changes: object):
        arguments = {**vars(self), **changes}
        tensors = [arguments.pop(name) for name in ("q", "k", "v", "p_q", "p_k")]
        return leap_attention(*tensors, backend=backend, return_state=return_state, **arguments)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        """The same case in another dtype, its state in the one that belongs to that."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, dtype)

        changes = {name: moved(getattr(self, name)) for name in ("q", "k", "v", "p_q", "p_k")}
        if self.state is not None:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            changes["state"] = LeapState(self.state.sums.to(device, wide))
        if self.key_mask is not None:
            changes["key_mask"] = self.key_mask.to(device)
        if isinstance(self.visible, Tensor):
            changes["visible"] = self.visible.to(device)
        return replace(self, **changes)

    def leaves(self) -> list[Tensor]:
        """Everything that has a gradient."""
        given = [self.q, self.k, self.v, self.p_q, self.p_k]
        given.append(None if self.state is None else self.state.sums)
        return [x for x in given if x is not None]

    def tracked(self) -> "Case":
        """The same case with fresh leaves that require gradients."""

        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().clone().requires_grad_()

        names = ("q", "k", "v", "p_q", "p_k")
        state = None if self.state is None else LeapState(leaf(self.state.sums))
        return replace(self, state=state, **{n: leaf(getattr(self, n)) for n in names})


def _visibility(draw, batch: int, queries: int, keys: int):
    kind = draw(st.sampled_from(("all", "causal", "chunks", "wait_k", "prefix", "[N]", "[B, N]")))
    if kind in ("all", "causal"):
        return kind
    if kind == "chunks":
        return Visible.chunks(draw(st.integers(1, 90)), draw(st.integers(0, 20)))
    if kind == "wait_k":
        return Visible.wait_k(draw(st.integers(0, 20)), draw(st.integers(1, 9)))
    if kind == "prefix":
        return Visible.causal(draw(st.integers(0, 100)))
    shape = (queries,) if kind == "[N]" else (batch, queries)
    return torch.randint(0, keys + 1, shape).sort(-1).values


def gradients(case: Case, backend: str, whole: bool = True, **options: object) -> list[Tensor]:
    """Output, with `whole` the sums after, and the gradients of all leaves."""
    case = case.tracked()
    found = case(backend, return_state=whole, **options)
    results = [found[0], found[1].sums] if whole else [found]
    torch.manual_seed(1)
    seeds = [
        torch.randn(x.shape, dtype=torch.float64).to(x) for x in results
    ]  # same for all dtypes
    grads = torch.autograd.grad(results, case.leaves(), seeds, materialize_grads=True)
    return [x.detach() for x in (*results, *grads)]


def put(x: Tensor, where: Tensor, value: Tensor | float) -> Tensor:
    """x with other values in places, in the memory layout of x: rounding depends on layout."""
    changed = x.clone()
    changed.copy_(torch.where(where, torch.as_tensor(value, dtype=x.dtype, device=x.device), x))
    return changed


@st.composite
def cases(draw, lengths=LENGTHS, visible=None, proportions=None, rows: int = 3) -> Case:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    batch, heads = draw(st.integers(1, rows)), draw(st.integers(1, rows))
    queries, keys = draw(st.sampled_from(lengths)), draw(st.sampled_from(lengths))
    width, value_width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    with_p = draw(st.booleans()) if proportions is None else proportions
    layout = draw(st.booleans())

    def random(length: int, size: int) -> Tensor:
        if layout:
            return torch.randn(batch, length, heads, size, dtype=torch.float64).transpose(1, 2)
        return torch.randn(batch, heads, length, size, dtype=torch.float64)

    state = None
    if draw(st.booleans()):
        rows = (2 if with_p else 1) * width
        state = LeapState(torch.rand(batch, heads, rows, value_width + 1, dtype=torch.float64))
    return Case(
        q=random(queries, width),
        k=random(keys, width),
        v=random(keys, value_width),
        p_q=torch.rand(batch, heads, queries, dtype=torch.float64) if with_p else None,
        p_k=torch.rand(batch, heads, keys, dtype=torch.float64) if with_p else None,
        visible=_visibility(draw, batch, queries, keys) if visible is None else visible,
        key_mask=torch.rand(batch, keys) > 0.3 if draw(st.booleans()) else None,
        state=state,
        feature_map=draw(st.sampled_from(("relu", "elu"))),
        eps=draw(st.sampled_from((1e-6, 0.1, 5.0))),
    )


def plain_case(
    batch: int, heads: int, queries: int, keys: int, width: int = 5, values: int = 7
) -> Case:
    """A case in float64 with all that a call can have."""
    q, k = (torch.randn(batch, heads, n, width, dtype=torch.float64) for n in (queries, keys))
    return Case(
        q,
        k,
        torch.randn(batch, heads, keys, values, dtype=torch.float64),
        torch.rand(batch, heads, queries, dtype=torch.float64),
        torch.rand(batch, heads, keys, dtype=torch.float64),
        "causal",
        torch.rand(batch, keys) > 0.3,
        LeapState(torch.rand(batch, heads, 2 * width, values + 1, dtype=torch.float64)),
        "relu",
        1e-6,
    )
