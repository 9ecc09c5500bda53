"""Quality against latency: trained translators under several policies, by the field's own tools."""

import hashlib
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from ... import plots
from ...results import markdown, read_json, signature, writable_folder, write_json
from ..comparison import grouped, over_seeds, where
from ..runs import RESULT
from .audio import RATE, AudioError, read_audio
from .data import Utterances, load
from .simulate import REFERENCES, SEGMENT, SOURCES, check_tools, simulate

SCORES = "scores.json"
SIGNED = ("machine", "versions", "commit")
"""What a simulation keeps of its own signature: another call may find it."""


def evaluate(
    runs: list[Path], waits: list[int | None], out: Path, folder: Path, utterances: int | None
) -> list[dict[str, Any]]:
    """Stream the first `utterances` of the test split in `folder` through every run's model with
    every wait (None: for all of the source).

    Leaves `results.json` (a record a run, with a point for each wait), `table.md` and `curve.png`
    in `out`. Started again, it keeps the simulations that are there, each with the machine,
    versions and commit that made it. Utterances whose audio cannot be read are left out, with a
    warning, and named. Raises FileNotFoundError or ValueError for a run that is not finished or was
    trained on something else, and what `check_tools` and `simulate` raise.
    """
    check_tools()
    if not runs or not waits:
        raise ValueError("give at least one run and one wait")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError("two runs have the same name: rename one")
    data = load(folder)
    trained = [_trained(run, data.about) for run in runs]
    writable_folder(out)
    sources = _sources(data.splits["test"], utterances, out)
    results = []
    for run, result in zip(runs, trained, strict=True):
        points = []
        for wait in tqdm(waits, desc=run.name, unit="wait"):
            place = out / "runs" / run.name / f"wait-{wait or 'all'}"
            points.append({"wait": wait or 0, **_point(run / "model", wait, out, place)})
        about = {key: result["signature"][key] for key in ("recipe", "seed", "data", "commit")}
        results.append(
            {
                "signature": signature(run=about, sources=sources),
                "parameters": result["parameters"],
                "points": points,
            }
        )
    write_json(out / "results.json", results)
    (out / "table.md").write_text(table(results), encoding="utf-8")
    plots.speech_curve(forms(results), _title(results[0]), out / "curve.png")
    return results


def _trained(run: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The result of a finished run on this data."""
    if not (run / RESULT).is_file():
        raise FileNotFoundError(f"{run} has no {RESULT}: leapformer speech train --out {run}")
    result: dict[str, Any] = read_json(run / RESULT)
    signed = result.get("signature", {})
    if signed.get("task") != "speech":
        raise ValueError(f"{run} is no run of leapformer speech train")
    if signed["data"] != about:
        raise ValueError(f"{run} was trained on other data: give --data of that")
    return result


def _sources(split: Utterances, count: int | None, out: Path) -> dict[str, Any]:
    """The first utterances as wav files of their own, with a list of them and one of their
    translations. Returns how many, their seconds, and the names of those left out."""
    wavs = out / "wavs"
    if wavs.exists():
        shutil.rmtree(wavs)
    wavs.mkdir()
    names, references, left_out, samples = [], [], [], 0
    for i in tqdm(range(min(len(split), count or len(split))), desc="sources", leave=False):
        item = split[i]
        try:
            sound = read_audio(item["audio"], item["start"], item["duration"])
        except (AudioError, FileNotFoundError) as error:
            left_out.append(f"{item['id']}: {error}")
            continue
        file = wavs / f"{i:05}.wav"
        soundfile.write(file, sound, RATE, subtype="FLOAT")
        samples += len(sound)
        names.append(str(file.resolve()))
        references.append(" ".join(item["translation"].split()))
    if not names:
        raise ValueError(f"no audio can be read; {left_out[0] if left_out else 'no utterances'}")
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(left_out) + len(names)} utterances are left out, for their "
            "audio cannot be read (results.json names all):\n  " + "\n  ".join(left_out[:3]),
            stacklevel=3,
        )
    (out / SOURCES).write_text("\n".join(names) + "\n", encoding="utf-8")
    (out / REFERENCES).write_text("\n".join(references) + "\n", encoding="utf-8")
    return {"utterances": len(names), "seconds": samples / RATE, "left_out": left_out}


def _point(model: Path, wait: int | None, out: Path, place: Path) -> dict[str, Any]:
    """What `simulate` finds, kept beside its log."""
    used = [model / "model.safetensors", out / REFERENCES]
    wanted = [SEGMENT, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in used)]
    kept = place / SCORES
    if kept.is_file() and (held := read_json(kept))["of"] == wanted:
        return {**held["scores"], **{key: held.get(key) for key in SIGNED}}
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    found, signed = simulate(model, wait, out, place), signature()
    about = {key: signed[key] for key in SIGNED}
    write_json(kept, {"of": wanted, "scores": found, **about})
    return {**found, **about}


def _title(result: dict[str, Any]) -> str:
    sources, unit = result["signature"]["sources"], _unit(result)
    return (
        f"{_about(result)}: {sources['utterances']} test utterances; beside the points how many "
        f"units of {unit} ms are waited for"
    )


def _about(result: dict[str, Any]) -> str:
    run = result["signature"]["run"]
    recipe = run["recipe"]
    return f"{run['data']['layout']}, preset {recipe['preset']}, {recipe['steps']:,} steps"


def _unit(result: dict[str, Any]) -> int:
    """Milliseconds of a unit of the source."""
    return 40 * int(result["signature"]["run"]["recipe"]["wait_ratio"])


def forms(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by their cross-attention, and by all else in which their recipes differ, in order of
    appearance."""
    recipes = [result["signature"]["run"]["recipe"] for result in results]
    told = ("cross_attention", "learned_progress")
    more = [
        key
        for key in dict.fromkeys(key for recipe in recipes for key in recipe)
        if key not in told and any(each.get(key) != recipes[0].get(key) for each in recipes)
    ]

    def form(signed: dict[str, Any]) -> str:
        recipe = signed["run"]["recipe"]
        name = recipe["cross_attention"] + " + learned progress" * recipe["learned_progress"]
        return ", ".join([name, *(f"{key} {recipe.get(key)}" for key in more)])

    return grouped(results, form)


def table(results: list[dict[str, Any]]) -> str:
    """Quality and latency over the seeds, a wait a row."""
    head = ["cross-attention", "wait", "BLEU", "chrF", "exact, %", "LAAL", "YAAL", "AL", "DAL"]
    head += ["LAAL, aware", "YAAL, aware", "AP", "real-time factor"]
    rows = []
    for name, group in forms(results).items():
        for points in zip(*(run["points"] for run in group), strict=True):
            timed = [point["omnisteval"] for point in points if point["omnisteval"]]
            rows.append(
                [
                    name,
                    str(points[0]["wait"] or "all"),
                    over_seeds([point["bleu"] for point in points], 1),
                    over_seeds([point["chrf"] for point in points], 1),
                    over_seeds([100 * point["exact"] for point in points], 1),
                    *(_known(timed, f"{key} (CU)") for key in ("LAAL", "YAAL", "AL", "DAL")),
                    _known(timed, "LAAL (CA)"),
                    _known(timed, "YAAL (CA)"),
                    _known(timed, "AP (CU)", 2),
                    _known(points, "real_time_factor", 3),
                ]
            )
    first = results[0]
    sources, seeds = first["signature"]["sources"], len(next(iter(forms(results).values())))
    left_out = f", {len(sources['left_out'])} left out" if sources["left_out"] else ""
    note = (
        f"{_about(first)}, {seeds} seed(s); {sources['utterances']} test utterances{left_out}, "
        f"{sources['seconds']:,.0f} s. A unit is {_unit(first)} ms; "
        "latencies in ms over words, as if computing took no time and, aware, with it (SimulEval's "
        f"log, omnisteval). {where(first['points'][0]['machine'])}."
    )
    return markdown(head, rows) + f"\n{note}\n"


def _known(records: Iterable[dict[str, Any]], key: str, digits: int = 0) -> str:
    """Over the seeds that have it."""
    found = [one[key] for one in records if one[key] is not None]
    return over_seeds(found, digits) if found else "-"
