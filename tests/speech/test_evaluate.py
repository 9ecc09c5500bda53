"""SimulEval and omnisteval on what a run left: the agent writes what a session writes, latency
grows with the wait, finished simulations are kept, and no bad utterance ends an evaluation."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr

from leapformer.cli import main
from leapformer.results import read_json, signature
from leapformer.tasks.runs import RESULT
from leapformer.tasks.speech import evaluate as module
from leapformer.tasks.speech.audio import read_audio
from leapformer.tasks.speech.evaluate import evaluate, forms, table
from leapformer.tasks.speech.simulate import AGENT, SEGMENT, real_time_factor
from leapformer.tasks.speech.translator import Translator


@contextmanager
def one_unreadable(data):
    """Meanwhile the audio of the fourth test utterance is none."""
    audio = data.splits["test"][3]["audio"]
    kept = audio.read_bytes()
    audio.write_bytes(b"RIFF")
    try:
        yield
    finally:
        audio.write_bytes(kept)


@pytest.fixture(scope="module")
def curve(learned, folder, data, tmp_path_factory):
    """The first eight test utterances, one of them unreadable, at two waits."""
    out = tmp_path_factory.mktemp("evaluate")
    said = r"1 of 8 utterances are left out.*\n  test-3: .*cannot be read as audio"
    with one_unreadable(data), pytest.warns(UserWarning, match=said):
        return out, evaluate([learned[0]], [1, None], out, folder, 8)


def logged(place):
    return [json.loads(line) for line in (place / "instances.log").read_text().splitlines()]


def test_the_agent_writes_what_a_session_writes(learned, curve, data):
    out, _ = curve
    for name, k in (("wait-1", 1), ("wait-all", None)):
        log = logged(out / "runs" / learned[0].name / name)
        session = Translator.load(learned[0] / "model", k).session()
        read = [i for i in range(8) if i != 3]
        for i, one in zip(read, log, strict=True):
            session.reset()
            sound = read_audio(data.splits["test"][i]["audio"])
            size, text, when = 16 * SEGMENT, "", []
            for begin in range(0, len(sound), size):
                text += session.push(sound[begin : begin + size])
                heard = min(begin + size, len(sound)) / 16
                words = len(text.split()) - (not text.endswith(" ") and bool(text))
                when += [heard] * (words - len(when))
            text += session.finish()
            when += [len(sound) / 16] * (len(text.split()) - len(when))
            assert one["prediction"] == text
            assert one["reference"] == data.splits["test"][i]["translation"]
            assert one["delays"] == pytest.approx(when)


def test_the_record_says_how_good_and_how_late(curve):
    out, (result,) = curve
    early, late = result["points"]
    assert (early["wait"], late["wait"]) == (1, 0)
    for point in (early, late):
        ours, theirs = point["simuleval"], point["omnisteval"]
        for name in ("LAAL", "AL", "DAL"):
            assert ours[name] == pytest.approx(theirs[f"{name} (CU)"], abs=0.01)
            assert theirs[f"{name} (CA)"] > theirs[f"{name} (CU)"]
        assert ours["BLEU"] == pytest.approx(theirs["BLEU"], abs=0.01)
        assert theirs["chrF"] == pytest.approx(point["chrf"], abs=0.01)
        assert point["real_time_factor"] > 0
    assert early["omnisteval"]["LAAL (CU)"] < late["omnisteval"]["LAAL (CU)"]
    assert early["omnisteval"]["YAAL (CU)"] > 0
    assert late["omnisteval"]["YAAL (CU)"] is None  # it counts what was written before the end
    assert late["exact"] > 0.2
    sources = result["signature"]["sources"]
    assert sources["utterances"] == 7
    (bad,) = sources["left_out"]
    assert bad.startswith("test-3: ")
    assert result["signature"]["run"]["recipe"]["cross_attention"] == "leap"
    assert read_json(out / "results.json") == [result]
    assert (out / "curve.png").stat().st_size > 10_000


def test_the_table_has_a_row_a_form_and_a_wait(curve):
    result = deepcopy(curve[1][0])
    other, longer = deepcopy(result), deepcopy(result)
    other["signature"]["run"]["recipe"]["learned_progress"] = False
    other["points"][0] |= {"omnisteval": None, "real_time_factor": None}
    said = table([result, result, other])
    rows = [line.split(" | ") for line in said.splitlines()[2:6]]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [
        ("leap + learned progress", "1"),
        ("leap + learned progress", "all"),
        ("leap", "1"),
        ("leap", "all"),
    ]
    assert f"{result['points'][0]['bleu']:.1f} ± 0.0" == rows[0][2]
    assert rows[2][5] == rows[2][-1].rstrip(" |") == "-"
    assert "7 test utterances, 1 left out, " in said
    result["signature"]["sources"]["left_out"].clear()
    assert "7 test utterances, " in (whole := table([result]))
    assert "left out" not in whole
    assert [len(group) for group in forms([result, result, other]).values()] == [2, 1]
    longer["signature"]["run"]["recipe"]["steps"] = 999
    steps = result["signature"]["run"]["recipe"]["steps"]
    assert [name[-9:] for name in forms([result, longer])] == [f"steps {steps}", "steps 999"]


@pytest.mark.filterwarnings("ignore:1 of . utterances are left out")
def test_finished_simulations_are_kept(learned, curve, folder, data, tmp_path, monkeypatch):
    out, (result,) = curve
    shutil.copytree(out, tmp_path / "out")
    ran = []

    def simulated(model, wait, sources, place):
        ran.append(wait)
        place.mkdir(parents=True)
        return {**result["points"][0], "bleu": 0.5}

    made = signature()

    def signed(**what):
        return {**made, **what, "versions": {"torch": "later"}, "commit": "later"}

    monkeypatch.setattr(module, "simulate", simulated)
    monkeypatch.setattr(module, "signature", signed)
    with one_unreadable(data):
        again = evaluate([learned[0]], [1, None, 2], tmp_path / "out", folder, 8)
        *kept, new = again[0]["points"]
        assert kept == result["points"]
        for point in kept:
            assert (point["machine"], point["versions"]) == (made["machine"], made["versions"])
            assert point["commit"] != "later"
        assert new["commit"] == again[0]["signature"]["commit"] == "later"
        assert ran == [2]
        evaluate([learned[0]], [1], tmp_path / "out", folder, 7)  # other utterances: anew
        assert ran == [2, 1]


def test_the_real_time_factor_is_of_streams_that_wrote_something():
    wrote = {"delays": [40, 900], "elapsed": [45, 950], "source_length": 1000}
    silent = {"delays": [], "elapsed": [], "source_length": 9000}
    assert real_time_factor([wrote, silent]) == pytest.approx(0.05)
    assert real_time_factor([silent]) is None


def test_what_cannot_be_evaluated_is_one_line(learned, folder, tmp_path, capsys):
    line = ["speech", "evaluate", "--out", str(tmp_path / "out"), "--data", str(folder)]
    assert main([*line, "--runs", str(tmp_path)]) == 2
    assert "has no result.json: leapformer speech train" in capsys.readouterr().err
    for change, cure in (
        ({"task": "lm"}, "no run of"),
        ({"data": {}}, "was trained on other data"),
    ):
        run = json.loads((learned[0] / RESULT).read_text())
        run["signature"] |= change
        (tmp_path / RESULT).write_text(json.dumps(run))
        assert main([*line, "--runs", str(tmp_path)]) == 2
        assert cure in capsys.readouterr().err
    assert main([*line, "--runs", str(learned[0]), "--waits", "1,few"]) == 2
    assert "a wait is 'few': give units" in capsys.readouterr().err
    assert main([*line, "--runs", str(learned[0]), str(learned[0])]) == 2
    assert "the same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_bad_wav_ends_simuleval(learned, data, tmp_path):
    sound = read_audio(data.splits["test"][2]["audio"])
    broken = sound.copy()
    broken[-40:] = np.nan
    cases = {
        "plain": (sound, 16_000),
        "empty": (sound[:0], 16_000),
        "short": (sound[:100], 16_000),
        "silent": (0 * sound, 16_000),
        "clipped": (np.clip(50 * sound, -1, 1), 16_000),
        "rate": (soxr.resample(sound, 16_000, 44_100), 44_100),
        "telephone": (soxr.resample(sound, 16_000, 8000), 8000),
        "stereo": (np.stack([sound, sound], 1), 16_000),
        "truncated": (sound, 16_000),
        "nan": (broken, 16_000),
    }
    for name, (samples, rate) in cases.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
    cut = tmp_path / "truncated.wav"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    names = [str(tmp_path / f"{name}.wav") for name in cases]
    (tmp_path / "wavs.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "references.txt").write_text("hoch tief mittel\n" * len(cases))
    words = ["--agent-class", AGENT, "--model-path", str(learned[0] / "model"), "--wait-k", "1"]
    words += ["--source", str(tmp_path / "wavs.txt"), "--target", str(tmp_path / "references.txt")]
    words += ["--source-segment-size", "80", "--output", str(tmp_path / "out")]
    tool = Path(sys.executable).parent / "simuleval"
    done = subprocess.run([tool, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "samples are left out: samples holds NaN or infinity" in done.stderr
    said = {
        name: one["prediction"] for name, one in zip(cases, logged(tmp_path / "out"), strict=True)
    }
    session = Translator.load(learned[0] / "model", 1).session()
    assert said["plain"] == session.push(sound) + session.finish()
    assert said["empty"] == said["short"] == ""
    assert said["plain"] == said["rate"] == said["stereo"]
    assert said["plain"].startswith(said["nan"][: len(said["nan"]) // 2])
    session.reset()
    low = soxr.resample(cases["telephone"][0], 8000, 16_000)
    assert said["telephone"] == session.push(low) + session.finish()
    session.reset()
    there, _ = soundfile.read(cut, dtype="float32")
    assert said["truncated"] == session.push(there) + session.finish()
    assert 0 < len(there) < len(sound)


def test_a_source_that_the_model_cannot_take_ends_there_and_the_next_begins_anew(
    learned, data, monkeypatch
):
    from leapformer.tasks.speech.agent import LeaPformerAgent

    agent = LeaPformerAgent(Namespace(model_path=learned[0] / "model", wait_k="1"))
    encoder = agent.session.translator.model.encoder
    sound, step = read_audio(data.splits["test"][2]["audio"]).tolist(), encoder.step

    def short(frames, state):
        if state.states is not None and int(state.states.max()) > 2:
            raise ValueError("positions leave the ramp")
        return step(frames, state)

    def spoken(piece=800):
        agent.reset()
        written = []
        for end in [*range(0, len(sound), piece), len(sound)]:
            states = SimpleNamespace(
                source=sound[:end], source_sample_rate=16_000, source_finished=end == len(sound)
            )
            action = agent.policy(states)
            written += [] if action.is_read() else action.content.split()
        assert action.finished
        return written

    whole = spoken()
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "step", short)
        with pytest.warns(UserWarning, match="rest of a source is left out: positions") as warned:
            begun = spoken()
        with pytest.warns(UserWarning, match="rest of a source is left out: positions"):
            assert spoken(len(sound)) == begun
    assert len(warned) == 1
    assert begun == whole[: len(begun)] != whole
    assert spoken() == whole
