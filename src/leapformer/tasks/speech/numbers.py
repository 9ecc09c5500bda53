"""Numbers from 0 to 99 in words: read digit by digit in English, whole in German and French."""

from ...ops.checks import known

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_DE = """null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn
fünfzehn sechzehn siebzehn achtzehn neunzehn"""
_DE_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
_FR = """zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze
seize dix-sept dix-huit dix-neuf"""
_FR_TENS = "vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt"


def spoken(number: int) -> str:
    """Two digits in English: 42 is "four two"."""
    return " ".join(DIGITS[digit] for digit in divmod(_two(number), 10))


def german(number: int) -> str:
    """One word, the ones before the tens: 42 is "zweiundvierzig"."""
    tens, ones = divmod(_two(number), 10)
    small = _DE.split()
    if number < 20:
        return small[number]
    stem = _DE_TENS.split()[tens - 2]
    return f"{'ein' if ones == 1 else small[ones]}und{stem}" if ones else stem


def french(number: int) -> str:
    """As in France and as spelled before 1990, with hyphens but where "et" joins: 21 is "vingt et
    un", 71 "soixante et onze", 80 "quatre-vingts", 81 "quatre-vingt-un"."""
    tens = _two(number) // 10
    small = _FR.split()
    if number < 20:
        return small[number]
    stem = _FR_TENS.split()[tens - 2]
    rest = number % 20 if tens in (7, 9) else number % 10
    if not rest:
        return stem + "s" * (tens == 8)
    return f"{stem} et {small[rest]}" if rest % 10 == 1 and tens < 8 else f"{stem}-{small[rest]}"


PAIRS = {"en-de": german, "en-fr": french}
"""How the second language of a pair writes a number."""


def translated(numbers: list[int], pair: str) -> str:
    """Numbers in words, a blank between them. Raises ValueError for an unknown pair."""
    write = PAIRS[known("pair", pair, PAIRS)]
    return " ".join(write(number) for number in numbers)


def _two(number: int) -> int:
    if not 0 <= number < 100:
        raise ValueError(f"{number}: expected a number of at most two digits")
    return number
