"""A tipping point is where it was put; a profile holds every case, but for what is too big."""

import json
import math

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapformer import leap_attention
from leapformer.bench import profile
from leapformer.bench.profile import run
from leapformer.bench.tipping import table, tipping_points
from leapformer.zoo import ATTENTIONS, linear

LENGTHS = [64, 128, 256, 512, 1024]


def records(points, lengths=LENGTHS):
    """Rounds in which softmax takes n^2 and linear attention n times the point of that round."""
    cases = {"softmax": lambda n, _: n**2, "linear": lambda n, point: n * point}
    return [
        {
            **{"attention": name, "scope": "layer", "visible": "all", "pass": "training"},
            **{"length": n, "rounds": [seconds(n, point) for point in points]},
        }
        for name, seconds in cases.items()
        for n in lengths
    ]


@given(st.lists(st.floats(65, 1023), min_size=1, max_size=5))
def test_finds_where_two_powers_of_the_length_cross(points):
    (found,) = tipping_points(records(points))
    assert found["attention"] == "linear"
    assert found["low"] == pytest.approx(min(points))
    assert found["high"] == pytest.approx(max(points))
    assert found["median"] == pytest.approx(sorted(points)[(len(points) - 1) // 2])


@pytest.mark.parametrize(("point", "expected"), [(30, 0.0), (5000, None)], ids=["always", "never"])
def test_a_point_outside_what_was_measured_is_said_to_be(point, expected):
    (found,) = tipping_points(records([point]))
    assert (found["low"], found["median"], found["high"]) == (expected,) * 3


def test_after_the_last_length_that_was_slower():
    slow_again = records([100.0])
    slow_again[-2]["rounds"] = [1e9]  # linear attention at 512
    (found,) = tipping_points(slow_again)
    assert 512 < found["median"] < 1024


def test_lengths_that_only_one_was_measured_at_do_not_count():
    shorter = [r for r in records([100.0]) if r["attention"] == "softmax" or r["length"] < 512]
    (found,) = tipping_points(shorter)
    assert found["median"] == pytest.approx(100)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "made" / "profile.json"
    return out, run(out, list(ATTENTIONS), [8, 12], hidden_size=8, rounds=2, least=0.001)


def test_every_mechanism_is_measured_in_every_case_that_it_can_serve(profiled):
    out, result = profiled
    assert json.loads(out.read_text()) == result
    found = {
        (r["attention"], r["scope"], r["visible"], r["pass"], r["length"])
        for r in result["records"]
    }
    assert found == {
        (name, scope, visible, which, length)
        for name, cls in ATTENTIONS.items()
        for scope, visible in profile.CASES
        if visible == "all" or cls.traits.causal
        for which in profile.PASSES
        for length in (8, 12)
    }
    for record in result["records"]:
        assert len(record["rounds"]) == 2
        middle = record["seconds"]["median"]
        assert 0 < record["seconds"]["low"] <= middle <= record["seconds"]["high"]
        assert record["tokens_a_second"] == pytest.approx(record["length"] / middle)
        assert record["peak_bytes"] > 0
    assert {"versions", "commit", "machine", "rounds", "lengths"} <= set(result["signature"])


def test_training_holds_more_memory_than_the_forward_pass(profiled):
    peaks = {}
    for r in profiled[1]["records"]:
        key = (r["attention"], r["scope"], r["visible"], r["length"])
        peaks.setdefault(key, {})[r["pass"]] = r["peak_bytes"]
    for found in peaks.values():
        assert found["training"] > found["forward"]


def test_the_table_and_the_picture_show_every_mechanism(profiled):
    out, result = profiled
    text = out.with_suffix(".md").read_text()
    assert text == table(result)
    assert all(f"| {name} |" in text for name in ATTENTIONS if name != "softmax")
    assert matplotlib.image.imread(out.with_suffix(".png"))[..., :3].std() > 0.02


def test_a_backend_may_be_named_behind_an_attention(tmp_path, monkeypatch):
    seen = set()

    def spy(*words, backend, **how):
        seen.add(backend)
        return leap_attention(*words, backend=backend, **how)

    monkeypatch.setattr(linear, "leap_attention", spy)
    names = ["leap@chunked", "leap@reference"]
    result = run(tmp_path / "p.json", names, [8], hidden_size=8, rounds=1, least=0.001)
    assert seen == {"chunked", "reference"}
    assert {r["attention"] for r in result["records"]} == {"softmax", *names}


def test_what_would_need_too_much_memory_is_left_out_from_there_on(tmp_path):
    lengths = [64, 128, 256, 512]
    out = tmp_path / "p.json"
    result = run(out, ["kernelized"], lengths, 8, rounds=1, gibibytes=0.0012, least=0.001)
    found = {
        name: [
            r["length"]
            for r in result["records"]
            if (r["attention"], r["scope"], r["visible"], r["pass"])
            == (name, "layer", "all", "training")
        ]
        for name in ("kernelized", "softmax")
    }
    assert found["softmax"] == lengths
    assert found["kernelized"] == [64, 128]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"lengths": []}, "must be at least 1"),
        ({"lengths": [0]}, "must be at least 1"),
        ({"rounds": 0}, "must be at least 1"),
        ({"attentions": ["leep"]}, "unknown attention 'leep'"),
        ({"attentions": ["leap@fast"]}, "unknown backend 'fast'"),
        ({"attentions": ["softmax@chunked"]}, "softmax has no backends"),
        ({"heads": 3}, "cannot be shared by 3 heads"),
        ({"heads": 0}, "must be at least 1"),
        ({"hidden_size": -8}, "must be at least 1"),
        ({"gibibytes": 0.0}, "some memory is needed"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(tmp_path, change, fault):
    arguments = {"attentions": ["leap"], "lengths": [8], "hidden_size": 8} | change
    with pytest.raises(ValueError, match=fault):
        run(tmp_path / "made" / "p.json", **arguments)
    assert not list(tmp_path.iterdir())


def test_growth_is_carried_on_as_a_power():
    known = [
        {**{"attention": "a", "scope": "layer", "visible": "all", "pass": "training"}, **sizes}
        for sizes in ({"length": 10, "peak_bytes": 100}, {"length": 20, "peak_bytes": 400})
    ]
    found = profile._expected_bytes(known, "a", "layer", "all", 80)
    assert math.isclose(found, 6400)
