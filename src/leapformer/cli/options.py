"""What several commands read from a command line."""

import argparse

ALL = "all"


def attentions(listed: str) -> list[str]:
    """Names of attentions, separated by commas, or all there are."""
    from ..zoo import ATTENTIONS

    names = [name.strip() for name in listed.split(",") if name.strip()]
    return list(ATTENTIONS) if names == [ALL] else names


def numbers(option: str, listed: str) -> list[int]:
    """Whole numbers, separated by commas; ValueError names the option."""
    try:
        return [int(number) for number in listed.split(",")]
    except ValueError:
        raise ValueError(f"{option} {listed}: give whole numbers, such as 0,1,2") from None


def peek(words: list[str], **defaults: str) -> list[str]:
    """Values of these options, before the words are parsed: they choose what may be overridden."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in defaults.items():
        first.add_argument(f"--{name}", default=default)
    found, _ = first.parse_known_args(words)
    return [getattr(found, name) for name in defaults]
