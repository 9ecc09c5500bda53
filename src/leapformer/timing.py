"""Time and memory of competing functions, measured fairly: interleaved rounds, medians, spread."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch
from tqdm import tqdm


class Spread(TypedDict):
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def seconds(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    least: float = 0.2,
    clock: Callable[[], float] = time.perf_counter,
    label: str = "timing",
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one value a round.

    In every round each contender runs for at least `least` seconds, one after the other, so that
    what disturbs the machine for a while disturbs them all. Compare the values of one round.
    """
    calls: dict[str, int] = {}
    for name, run in contenders.items():
        run()
        began = clock()
        run()
        calls[name] = max(1, round(least / max(clock() - began, 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(rounds), desc=label, unit="round", leave=False):
        for name, run in contenders.items():
            _settle()
            began = clock()
            for _ in range(calls[name]):
                run()
            _settle()
            taken[name].append((clock() - began) / calls[name])
    return taken


def once(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a single call, of what takes too long for more."""
    _settle()
    began = clock()
    run()
    _settle()
    return clock() - began


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that tensors made by `run` held at one time, beyond what was held before.

    Counted at torch's allocator, not sampled: on the CPU from the profiler's record of every
    allocation, on a GPU from its statistics.
    """
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    with _quiet():
        profile.start()
    run()
    with _quiet():
        profile.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what C++ writes to stderr: the profiler announces its start and stop there."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
