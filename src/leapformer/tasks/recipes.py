"""What every recipe is held to, and what it gives to every attention alike."""

from dataclasses import fields
from typing import Any

from ..zoo import attention_class


def check_numbers(recipe: Any, may_be_zero: tuple[str, ...]) -> None:
    """Raises ValueError for a number of the recipe that is not positive, but for zero in those."""
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if number < 0 or (number == 0 and item.name not in may_be_zero):
                least = "at least 0" if item.name in may_be_zero else "positive"
                raise ValueError(f"{item.name} is {number}: it must be {least}")


def options_of(attention: str, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered options that this attention takes."""
    taken = attention_class(attention).options()
    return {name: value for name, value in offered.items() if name in taken}
