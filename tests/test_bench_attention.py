"""`leapformer bench attention`: what it times is right, and it says what it leaves out."""

import functools
import json
import math
import sys
from types import ModuleType

import matplotlib.image
import pytest
import torch

from leapformer import leap_attention
from leapformer.bench import attention as bench
from leapformer.bench import laws, peers
from leapformer.bench.cases import CASES, DECODER, Case, forward_bytes, operations, step_bytes
from leapformer.bench.goals import GOALS, goals, report
from leapformer.cli import main

CPU = torch.device("cpu")
BENCH = "bench attention --lengths 128 --rounds 1 --backend chunked"


@pytest.fixture
def quick(monkeypatch):
    """Little is timed, and short."""
    monkeypatch.setattr(bench, "seconds", functools.partial(bench.seconds, least=0.01))
    monkeypatch.setattr(bench, "CONTEXTS", (64, 128))
    monkeypatch.setattr(bench, "CASES", tuple(Case(2, 2, 8, case.causal) for case in CASES))


def measure(folder, line=BENCH):
    out = folder / "made" / "attention.json"
    assert main([*line.split(), "--out", str(out)]) == 0
    return json.loads(out.read_text()), out


@pytest.mark.usefixtures("quick")
def test_it_writes_ratios_memory_shares_a_report_and_a_picture(tmp_path, capsys):
    result, out = measure(tmp_path, BENCH + ",reference --lengths 256 128")
    assert {"versions", "commit", "machine", "backend"} <= set(result["signature"])
    assert result["backends"] == {"leap": "chunked", "leap reference": "reference"}
    assert len(result["lengths"]) == 2 * 2 * 2 * 4  # cases, lengths, passes, contenders
    assert {record["length"] for record in result["lengths"]} == {128, 256}
    assert {record["context"] for record in result["decode"]} == {64, 128}
    for record in result["lengths"] + result["decode"]:
        spreads = [record["times_sdpa"], record["seconds"]]
        over_lengths = record in result["lengths"]
        if record["contender"] in result["backends"]:
            spreads += [record["of_matmul"]] if over_lengths else [record["of_bandwidth"]]
            if over_lengths and record["pass"] == "forward":
                spreads.append(record["of_bandwidth"])
        if record["contender"] == "sdpa":
            assert record["times_sdpa"] == {"median": 1, "low": 1, "high": 1}
        for each in spreads:
            assert 0 < each["low"] <= each["median"] <= each["high"]
        assert record["peak_bytes"] > 0
    assert matplotlib.image.imread(out.with_suffix(".png"))[..., :3].std() > 0.02
    said = out.with_suffix(".md").read_text()
    assert said in capsys.readouterr().out
    for name in (*result["peers"]["absent"], "error in half precision", "leap reference"):
        assert name in said


@pytest.mark.usefixtures("quick")
def test_what_takes_long_is_measured_once_or_left_out_and_named(tmp_path, monkeypatch):
    line = BENCH + " --lengths 128 256 512 --rounds 2"
    monkeypatch.setattr(bench, "ROUNDS_UP_TO", 0.0)
    once, _ = measure(tmp_path, line)
    assert {(r["length"], r["rounds"]) for r in once["lengths"]} == {(128, 2), (256, 1), (512, 1)}
    assert once["left_out"] == []
    monkeypatch.setattr(bench, "ONCE_UP_TO", 0.0)
    left, out = measure(tmp_path, line)
    assert {record["length"] for record in left["lengths"]} == {128}
    assert {record["length"] for record in left["left_out"]} == {256, 512}
    assert "sdpa is left out at 256, forward (causal" in out.with_suffix(".md").read_text()


@pytest.mark.usefixtures("quick")
def test_where_sdpa_is_left_out_the_others_are_measured(tmp_path, monkeypatch):
    def expected(self, case, length, way, name):
        return math.inf if name == "sdpa" and length > 128 else 0.0

    monkeypatch.setattr(bench.Bench, "_expected", expected)
    result, _ = measure(tmp_path, BENCH + " --lengths 128 256")
    long = [record for record in result["lengths"] if record["length"] == 256]
    assert {record["contender"] for record in long} == {"leap", "quadratic"}
    assert {record["contender"] for record in result["left_out"]} == {"sdpa"}
    assert all("times_sdpa" not in record for record in long)


def test_a_case_ends_at_its_longest_length(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench.Bench, "at_length", lambda self, *where: seen.append(where))
    monkeypatch.setattr(bench.Bench, "decode", lambda *_: None)
    monkeypatch.setattr(bench, "CASES", (Case(1, 1, 8, True, longest=200),))
    monkeypatch.setattr(bench.plots, "attention_bench", lambda *_: None)
    measure(tmp_path, BENCH + " --lengths 256 200 128")
    assert [length for _, length in seen] == [128, 200]


WRONG = {
    "float32": lambda y, q, state: y * (1 + 1e-4) if q.dtype == torch.float32 else y,
    "bfloat16": lambda y, q, state: y * 1.05 if q.dtype == torch.bfloat16 else y,
    "float16": lambda y, q, state: y * 1.05 if q.dtype == torch.float16 else y,
    "step": lambda y, q, state: y if state is None else y * (1 + 1e-4),
}


@pytest.mark.parametrize("law", WRONG)
def test_no_backend_that_breaks_a_law_is_timed(tmp_path, capsys, monkeypatch, law):
    def wrong(q, *arguments, **options):
        y = leap_attention(q, *arguments, **options)
        return WRONG[law](y, q, options.get("state")) if options["backend"] == "chunked" else y

    monkeypatch.setattr(laws, "leap_attention", wrong)
    monkeypatch.setattr(bench.Bench, "at_length", lambda *_: pytest.fail("it was timed"))
    out = tmp_path / "attention.json"
    assert main([*BENCH.split(), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "chunked errs by" in said
    assert f"({law})" in said
    assert not out.exists()


def fast_transformers(monkeypatch, product):
    """Makes a package of that name importable, with this product."""
    package, module = ModuleType("fast_transformers"), ModuleType("causal_product")
    module.causal_dot_product = product
    monkeypatch.setitem(sys.modules, "fast_transformers", package)
    monkeypatch.setitem(sys.modules, "fast_transformers.causal_product", module)


def right(q, k, v):
    return (q @ k.mT).tril() @ v


@pytest.mark.usefixtures("quick")
def test_a_peer_that_is_right_is_measured_where_queries_see_the_past(tmp_path, monkeypatch):
    fast_transformers(monkeypatch, right)
    result, _ = measure(tmp_path)
    name = "pytorch-fast-transformers"
    assert result["peers"]["measured"] == [name]
    assert list(result["peers"]["absent"]) == ["flash-linear-attention"]
    mine = [record for record in result["lengths"] if record["contender"] == name]
    assert [record["case"].split(",")[0] for record in mine] == ["causal", "causal"]


def fails(q, k, v):
    raise RuntimeError("no kernel")


@pytest.mark.parametrize(
    ("product", "why"),
    [
        (lambda q, k, v: 1.01 * right(q, k, v), "errs by 1.0e-02"),
        (lambda q, k, v: q @ k.mT @ v, "errs by"),
        (lambda q, k, v: right(q.detach(), k, v) + 0 * q[..., :1], "errs by"),
        (fails, "RuntimeError: no kernel"),
        (None, "ModuleNotFoundError: "),
    ],
)
def test_a_peer_that_is_wrong_or_fails_is_absent_with_the_reason(monkeypatch, product, why):
    if product is None:
        monkeypatch.setitem(sys.modules, "fast_transformers", None)
    else:
        fast_transformers(monkeypatch, product)
    here, absent = peers.peers(CPU, torch.float32)
    assert here == {}
    assert absent["pytorch-fast-transformers"].startswith(why)
    assert absent["flash-linear-attention"] == "measured on cuda"


def test_a_peer_of_another_layout_is_given_its_own(monkeypatch):
    """flash-linear-attention's [B, N, H, D], a scale of one and its own normaliser."""
    ops, module = ModuleType("fla.ops"), ModuleType("fla.ops.linear_attn")

    def chunked(q, k, v, scale, normalize):
        assert (scale, normalize) == (1.0, True)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.mT).tril()
        return (weights @ v / weights.sum(-1, keepdim=True)).transpose(1, 2), None

    module.chunk_linear_attn = chunked
    for name, made in (("fla", ModuleType("fla")), ("fla.ops", ops), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, made)
    where = peers.PEERS["flash-linear-attention"]
    monkeypatch.setitem(peers.PEERS, "flash-linear-attention", ("cpu", where[1]))
    assert "flash-linear-attention" in peers.peers(CPU, torch.float32)[0]


def test_operations_and_bytes_are_those_of_the_formula():
    assert operations(Case(1, 1, 2, False), 3)["forward"] == 2 * 2 * 3 * 4 * 3
    one_tile = operations(Case(1, 1, 2, True), 3)
    assert one_tile["forward"] == 2 * 6 * (2 + 3)
    assert one_tile["forward+backward"] == one_tile["forward"] + 2 * 6 * (3 + 4 + 2 + 2 + 4)
    assert forward_bytes(Case(2, 3, 5, True), 7, torch.float16) == 2 * 3 * 7 * (4 * 5 * 2 + 8)
    state = 2 * 5 * 6 * 4
    assert step_bytes(Case(2, 3, 5, True), torch.float16) == 2 * 3 * (2 * state + 4 * 5 * 2)


def a_result(gpu=None, threads=1, precision="float32"):
    """Training 20 times as fast as SDPA, and twice as fast as a peer, at 4,096 alone."""
    where = {"case": str(DECODER), "length": 4096, "pass": "forward+backward"}
    times = {"times_sdpa": {"median": 20.0}, "of_matmul": {"median": 0.5}}
    return {
        "signature": {
            "machine": {"gpu": gpu, "threads": threads, "processor": "one"},
            "precision": precision,
        },
        "backends": {"leap": "native"},
        "errors": {"native": {"bfloat16": 0.5, "float16": 2.5}},
        "peers": {"measured": [], "absent": {}},
        "left_out": [],
        "lengths": [
            {**where, "contender": "leap", "seconds": {"median": 1.0}, "rounds": 1, **times},
            {
                **where,
                "contender": "flash-linear-attention",
                "seconds": {"median": 2.0},
                "rounds": 1,
            },
        ],
        "decode": [],
    }


def told(**how):
    """Of each goal whether it is reached, and why it was not measured."""
    return {goal["goal"]: (goal["reached"], goal["reason"]) for goal in goals(a_result(**how))}


def test_each_goal_is_reached_missed_or_not_measured_and_says_why():
    found = told()
    assert len(found) == len(GOALS)
    assert found["training at 4,096: times SDPA"] == (True, "")
    assert found["training at 16,384: times SDPA"] == (None, "needs other lengths, or the peer")
    assert found["training at 4,096: share of torch.mm's rate"] == (False, "")
    assert found["training from 2,048: times flash-linear-attention"] == (None, "needs a GPU")
    half = next(goal for goal in goals(a_result()) if "half precision" in goal["goal"])
    assert (half["bound"], half["measured"], half["reached"]) == ("at most 2", 2.5, False)
    said = report(a_result() | {"goals": goals(a_result())})
    for words in ("| reached |", "| missed |", "| not measured: needs a GPU |"):
        assert words in said


def test_goals_are_those_of_the_device_and_set_up():
    on_gpu = told(gpu="a GPU", precision="bfloat16")
    assert on_gpu["training from 2,048: times flash-linear-attention"] == (True, "")
    assert on_gpu["training at 4,096: times SDPA"] == (None, "needs a run without a GPU")
    busy = told(threads=2)
    assert busy["training at 4,096: times SDPA"] == (None, "needs one thread and float32")
    assert [name for name, (_, reason) in busy.items() if not reason] == [GOALS[-1].name]
