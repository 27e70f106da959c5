"""Patterns of somebody's quantization section: whatever they are, matching them ends."""

import pytest

from g4convert.checkpoint import entries
from g4convert.checkpoint.declared import declared_in
from g4convert.checkpoint.entries import COMPRESSED_TENSORS, Clock, Entries
from g4convert.errors import FormatError

NAME = "model.language_model.layers.11.self_attn.q_proj"
ENDLESS = r"re:(?:[a-z]|[a-m]|[a-f])*[A-Z]"
"""A pattern that has 3^40 ways to fail at the name of 40 letters."""


@pytest.mark.parametrize("pattern", [r"re:((a|[a-z._0-9])*)*!", "re:" + ".*" * 30 + "!", r"re:(x+x+)+y"])
def test_repeats_in_repeats_are_matched_in_time(pattern: str) -> None:
    assert not Entries.of(COMPRESSED_TENSORS, [pattern]).name(NAME)


def test_a_pattern_without_end_is_refused_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_SECONDS", 0.2)
    read = Entries.of(COMPRESSED_TENSORS, [ENDLESS])
    with pytest.raises(FormatError, match=r"matching its quantization patterns takes over 0 s: re:\(\?:\[a-z"):
        read.name("a" * 40)


def test_the_time_is_that_of_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_SECONDS", 0.0)
    quick = Entries.of(COMPRESSED_TENSORS, ["re:.*mlp.*", "re:.*x$"], clock=Clock())
    with pytest.raises(FormatError):
        quick.name(NAME)


@pytest.mark.parametrize("pattern", ["[", "(?P<x", "(" * 5000 + ")" * 5000, "a{99999999999}", "(?<=a*)b"])
def test_what_is_no_pattern_is_named_and_matches_nothing(pattern: str) -> None:
    read = Entries.of(COMPRESSED_TENSORS, [f"re:{pattern}"])
    assert read.broken == (f"re:{pattern}",)
    assert not read.name(NAME)


@pytest.mark.parametrize("pattern", [r"re:.*layers\.(\d+)\..*q_proj", "re:[[a-z]*", "re:(?:model.)*.*q_proj"])
def test_patterns_of_people_match(pattern: str) -> None:
    """With few repeats, with a set that Python may read differently some day, and with repeats of a group."""
    assert Entries.of(COMPRESSED_TENSORS, [pattern]).name(NAME)


@pytest.mark.parametrize(("count", "entry"), [(20_001, "a.b"), (2_001, "re:.*x")])
def test_lists_without_end_are_a_fault(count: int, entry: str) -> None:
    section = {"quant_method": COMPRESSED_TENSORS, "config_groups": {}, "ignore": [entry] * count}
    declared = declared_in({"quantization_config": section})
    assert declared is not None
    assert declared.ignore == ()
    (fault,) = declared.faults
    assert fault.startswith(f"ignore has {count:,} entries with ")
    assert fault.endswith("at most 20,000 with 2,000 patterns are read")
