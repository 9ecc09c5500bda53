"""Commands that time: `leapformer profile`, `leapformer bench attention`, `bench language`."""

from dataclasses import dataclass, field
from pathlib import Path

from .options import ALL, attentions


@dataclass
class BenchAttention:
    """Time the op against torch's SDPA, the quadratic form and other libraries."""

    out: Path
    """The JSON file; a report and a picture are put beside it."""
    lengths: list[int] = field(default_factory=lambda: [2**i for i in range(7, 17)])
    threads: int = 1
    rounds: int = 7
    backend: str = "auto"
    """Of the op; several are separated by commas, such as native,chunked."""
    dtype: str = "auto"
    """float32, bfloat16 or float16; auto is float32 on a CPU and bfloat16 on a GPU."""

    def __call__(self) -> None:
        from ..bench.attention import run

        run(self.out, self.lengths, self.threads, self.rounds, self.backend, self.dtype)
        print(self.out.with_suffix(".md").read_text(encoding="utf-8"))
        print(f"{self.out}\npicture: {self.out.with_suffix('.png')}")


@dataclass
class BenchLanguage:
    """What a language model holds in training and, over ever longer texts, in generation."""

    out: Path
    """The JSON file; the picture is put beside it."""
    attentions: str = "leap,softmax"
    """Causal mechanisms of the zoo, separated by commas."""
    lengths: list[int] = field(default_factory=lambda: [2**i for i in range(9, 15)])
    """Of a training row."""
    tokens: int = 100_000
    """How long the generated text becomes."""
    growing: int = 10_000
    """How long where the state grows with it."""
    rounds: int = 5
    threads: int = 1

    def __call__(self) -> None:
        from ..bench.language import run

        names = attentions(self.attentions)
        result = run(
            self.out,
            names,
            self.lengths,
            self.tokens,
            self.growing,
            self.rounds,
            self.threads,
        )
        for record in result["generation"]:
            first, last = record["blocks"][0], record["blocks"][-1]
            print(
                f"{record['attention']}: {1e3 * first['seconds']:.2f} ms a token and "
                f"{first['cache_bytes']:,} bytes after {first['tokens']:,} tokens, "
                f"{1e3 * last['seconds']:.2f} ms and {last['cache_bytes']:,} bytes after "
                f"{last['tokens']:,}"
            )
        print(f"{self.out}\npicture: {self.out.with_suffix('.png')}")


@dataclass
class Profile:
    """From which length does each attention pay? Time and memory of a layer and of a model."""

    out: Path
    """The JSON file; a table and a picture are put beside it."""
    attentions: str = ALL
    """Mechanisms of the zoo, separated by commas, or all; leap@chunked is leap in that backend."""
    lengths: list[int] = field(default_factory=lambda: [2**i for i in range(6, 15)])
    hidden_size: int = 128
    heads: int = 2
    batch: int = 1
    rounds: int = 5
    threads: int = 1
    gibibytes: float = 8.0
    """Leave out what would hold more memory than this."""

    def __call__(self) -> None:
        from ..bench.profile import run

        run(
            self.out,
            attentions(self.attentions),
            self.lengths,
            self.hidden_size,
            self.heads,
            self.batch,
            self.rounds,
            self.threads,
            self.gibibytes,
        )
        print(self.out.with_suffix(".md").read_text())
        print(f"{self.out}\npicture: {self.out.with_suffix('.png')}")


@dataclass
class BenchSpeech:
    """What a translation stream costs over an hour of sound, and with many sessions at once."""

    out: Path
    """The JSON file; a picture is put beside it."""
    preset: str = "digits"
    """The recipe whose model is measured, with random weights."""
    cross: str = "leap,softmax"
    """Mechanisms of cross-attention, separated by commas; the first one has many sessions."""
    sessions: list[int] = field(default_factory=lambda: [1, 10, 25, 50, 100])
    minutes: int = 60
    """Of sound, for one session."""
    seconds: int = 20
    """Of sound, for each of many sessions."""
    wait: int = 3
    """Units of the source before the first word."""
    threads: int = 2

    def __call__(self) -> None:
        from ..bench.speech import run

        result = run(
            self.out,
            self.preset,
            attentions(self.cross),
            self.sessions,
            self.minutes,
            self.seconds,
            self.wait,
            self.threads,
        )
        for record in result["one"]:
            first, last = record["minutes"][0], record["minutes"][-1]
            print(
                f"{record['attention']}: real-time factor {first['real_time_factor']:.4f} and "
                f"{first['state_bytes']:,} bytes after a minute, {last['real_time_factor']:.4f} "
                f"and {last['state_bytes']:,} bytes after {last['minute']}"
            )
        for record in result["many"]:
            print(
                f"{record['sessions']} sessions: real-time factor {record['real_time_factor']:.3f}"
            )
        print(f"{self.out}\npicture: {self.out.with_suffix('.png')}")
