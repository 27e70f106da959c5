"""Lessons of the trained fixtures: short conversations whose answers can be foreseen.

    continue   the second half of a verse
    repeat     copy a clause
    code       a function with the names and the operator that were asked for
    tools      a JSON call with the arguments that were named
    count      numbers in nine languages, five of them not in Latin letters
    picture    the colours of a picture, row by row
    sound      the notes of a sound

Everything but the verses is made here from a few words, so a small model gets it right and a damaged one does not.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "PICTURE_QUESTION", "SOUND_QUESTION", "Lesson", "Verses", "lesson"]

PICTURE_QUESTION = "Which colours do you see?"
SOUND_QUESTION = "Which notes do you hear?"

_REFERENCE = re.compile(r"^\w+\d+:\d+\s+")
_HELD_OUT = 20  # every 20th chapter-sized block of verses is kept for measuring
_BLOCK = 25

_FUNCTIONS = ("total", "result", "combine", "compute", "apply", "join")
_ARGUMENTS = ("a", "b", "x", "y", "left", "right", "first", "second", "size", "count")
_OPERATORS = {"adds": "+", "subtracts": "-", "multiplies": "*", "divides": "/", "compares": "=="}
_CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Oslo", "Cairo", "Lima", "Athens", "Jerusalem")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NUMBERS = {
    "English": "one two three four five six seven eight nine ten",
    "German": "eins zwei drei vier fünf sechs sieben acht neun zehn",
    "French": "un deux trois quatre cinq six sept huit neuf dix",
    "Latin": "unus duo tres quattuor quinque sex septem octo novem decem",
    "Russian": "один два три четыре пять шесть семь восемь девять десять",
    "Greek": "ένα δύο τρία τέσσερα πέντε έξι επτά οκτώ εννέα δέκα",
    "Chinese": "一 二 三 四 五 六 七 八 九 十",
    "Arabic": "واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة عشرة",
    "Hindi": "एक दो तीन चार पाँच छह सात आठ नौ दस",
}


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question and its answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Verses:
    """Lines of a text, split once into what is learned and what is kept for measuring."""

    learned: tuple[str, ...]
    held_out: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> "Verses":
        """Read a text, one verse or sentence a line; a leading `Ge1:1` is dropped."""
        lines = [_REFERENCE.sub("", line).strip() for line in path.read_text().splitlines()]
        lines = [line for line in lines if len(line) > 40]
        kept = [(number // _BLOCK) % _HELD_OUT == _HELD_OUT - 1 for number in range(len(lines))]
        return cls(
            tuple(line for line, out in zip(lines, kept, strict=True) if not out),
            tuple(line for line, out in zip(lines, kept, strict=True) if out),
        )


def _continue(rng: random.Random, verses: Sequence[str]) -> tuple[str, str]:
    words = rng.choice(verses).split()
    cut = next((n for n in range(len(words) // 3, len(words) - 3) if words[n][-1] in ",;:."), len(words) // 2)
    return f"Continue: {' '.join(words[: cut + 1])}", " ".join(words[cut + 1 :])


def _repeat(rng: random.Random, verses: Sequence[str]) -> tuple[str, str]:
    clause = rng.choice(re.split(r"[,;:.?]\s*", rng.choice(verses))[:-1] or ["Amen"])
    return f"Repeat: {clause}", clause


def _code(rng: random.Random, _: Sequence[str]) -> tuple[str, str]:
    name, (first, second) = rng.choice(_FUNCTIONS), rng.sample(_ARGUMENTS, 2)
    verb = rng.choice(tuple(_OPERATORS))
    question = f"Write a Python function {name} that {verb} {first} and {second}."
    return question, f"def {name}({first}, {second}):\n    return {first} {_OPERATORS[verb]} {second}"


def _tools(rng: random.Random, _: Sequence[str]) -> tuple[str, str]:
    city, other = rng.sample(_CITIES, 2)
    day = rng.choice(_DAYS)
    question, name, arguments = rng.choice(
        (
            (f"What is the weather in {city} on {day}?", "get_weather", {"city": city, "day": day}),
            (f"Book a train from {city} to {other}.", "book_train", {"from": city, "to": other}),
            (f"What time is it in {city}?", "get_time", {"city": city}),
        )
    )
    return question, json.dumps({"name": name, "arguments": arguments})


def _count(rng: random.Random, _: Sequence[str]) -> tuple[str, str]:
    language = rng.choice(tuple(_NUMBERS))
    words = _NUMBERS[language].split()
    low = rng.randrange(0, 8)
    high = rng.randrange(low + 1, 10)
    return f"Count in {language} from {low + 1} to {high + 1}.", ", ".join(words[low : high + 1])


KINDS: dict[str, Callable[[random.Random, Sequence[str]], tuple[str, str]]] = {
    "continue": _continue,
    "repeat": _repeat,
    "code": _code,
    "tools": _tools,
    "count": _count,
}


def lesson(rng: random.Random, verses: Sequence[str], kind: str | None = None) -> Lesson:
    """One lesson of a kind; without one, half are verses to continue."""
    if kind is None:
        kind = rng.choices(tuple(KINDS), weights=(8, 3, 1, 1, 2))[0]
    return Lesson(kind, *KINDS[kind](rng, verses))
