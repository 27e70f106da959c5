"""Configs that do not fit the tensors: `check` names what is wrong, and `--fix` writes the config of a good one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.configs import (
    Config,
    copied,
    exit_code,
    fixed,
    good,
    ignoring,
    judged,
    left_out,
    loads,
    read,
    renamed_section,
    scheme,
    whole_group,
    without,
)

from g4convert.engines.verdicts import Loads
from g4convert.inspection.fix import fix
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


__all__ = ["copied", "good"]


STATUS = "quantization_status"


def targets(*entries: str) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"]["config_groups"]["group_0"].update(targets=[*entries])


def status(value: str | None) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"].update(quantization_status=value)


def no_weights_below_text(config: Config) -> None:
    whole_group(weights=None)(config)
    config["text_config"]["quantization_config"] = config.pop("quantization_config")


def moved_below_text(config: Config) -> None:
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    config["text_config"]["quantization_config"]["ignore"] = []


def anchored(entries: list[str]) -> list[str]:
    return [entry.replace("re:.*", r"re:^model\.") if "vision_tower" in entry else entry for entry in entries]


TOWER_NAMES = [
    f"model.vision_tower.{name}"
    for name in (
        "patch_embedder.input_proj",
        *(f"encoder.layers.0.self_attn.{part}_proj.linear" for part in "qkvo"),
        *(f"encoder.layers.0.mlp.{part}_proj.linear" for part in ("gate", "up", "down")),
    )
]

# size, what is done to the config, the engine that then fails, a line of its verdict
BROKEN = {
    "patch_dense without its prefix": (
        "12B",
        without("vision_embedder", "patch_dense"),
        "vllm",
        "vision_embedder.patch_dense: plain, although targeted",
    ),
    "tower by its full names": (
        "31B",
        without("vision_tower", *TOWER_NAMES),
        "sglang",
        "self_attn.qkv_proj: plain, although targeted",
    ),
    "pattern from the start": ("31B", ignoring(anchored), "vllm", "vision_tower"),
    "another group size": ("E2B", scheme(group_size=64), "vllm", "group_size 64 in the config, 32 stored"),
    "another number of bits": ("E2B", scheme(num_bits=8), "sglang", "num_bits 8 in the config, 4 stored"),
    "bits left out": (
        "31B",
        left_out("num_bits"),
        "vllm",
        "num_bits 8 in the config (the default, as it is left out), 4",
    ),
    "group size left out": ("31B", left_out("group_size"), "sglang", "which engines refuse: strategy group without a"),
    "group size and strategy left out": (
        "31B",
        left_out("group_size", "strategy"),
        "transformers",
        "strategy tensor in the config (the default, as it is left out), group stored",
    ),
    "null bits": ("31B", scheme(num_bits=None), "vllm", "weights, which engines refuse: num_bits is null"),
    "a key too many": ("31B", scheme(groups=32), "vllm", "'groups' is no key of compressed-tensors"),
    "tied head not ignored": ("31B", without("lm_head"), "transformers", "lm_head: plain, although targeted"),
    "router not ignored": ("26B-A4B", without("router"), "transformers", "router.proj: plain, although targeted"),
    "packed parts ignored": ("31B", without("nothing", r"re:.*\.mlp\..*"), "vllm", "packed, although ignored"),
    "targets by names of the files": (
        "31B",
        targets(r"re:model\.language_model\.layers.*"),
        "vllm",
        "packed, although no target",
    ),
    "no section": ("31B", lambda config: config.pop("quantization_config"), "vllm", "quantization_config: missing"),
    "no weights": ("31B", whole_group(weights=None), "vllm", "config_groups.group_0: no weights"),
    "weights left out": (
        "31B",
        lambda config: config["quantization_config"]["config_groups"]["group_0"].pop("weights"),
        "sglang",
        "config_groups.group_0: no weights",
    ),
    "no weights below text_config": ("31B", no_weights_below_text, "vllm", "config_groups.group_0: no weights"),
    "broken pattern": ("31B", without("nothing", "re:("), "vllm", "re:(: no regular expression"),
    "status frozen": ("31B", status("frozen"), "transformers", "quantization_status: 'frozen'"),
    "status null": ("31B", status(None), "transformers", "quantization_status: null"),
    "old name of the section": ("31B", renamed_section, "transformers", "compression_config: the section has"),
    "no method": (
        "31B",
        lambda config: config["quantization_config"].update(quant_method="awq"),
        "vllm",
        "quant_method 'awq'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_named_and_mended(
    name: str, copied: Callable[..., Path], good: Callable[[str], Path]
) -> None:
    size, change, engine, line = BROKEN[name]
    directory = copied(size, change)
    found = judged(directory, engine)
    assert exit_code(found) == 1
    assert loads(found)[engine] is Loads.NO
    told = [one.line for one in found.verdicts[0].problems]
    assert any(line in text for text in told), told
    old = (directory / "config.json").read_bytes()

    made = fix(directory, [engine])
    assert made is not None
    assert made.kept == directory / "config.json.orig"
    assert made.changes
    assert read(directory) == read(good(size))
    assert (directory / "config.json.orig").read_bytes() == old
    assert judged(directory, engine).report.findings == judged(good(size), engine).report.findings
    files = {path.name: path.read_bytes() for path in directory.glob("*.json*")}

    assert fix(directory, [engine]) is None
    assert {path.name: path.read_bytes() for path in directory.glob("*.json*")} == files


def test_what_is_left_out_and_means_the_same_is_no_fault(copied: Callable[..., Path]) -> None:
    found = judged(copied("31B", left_out("strategy", "symmetric", "type")))
    assert exit_code(found) == 0
    assert not found.report.of(Severity.WARN)


def below_text(config: Config) -> None:
    config["text_config"]["quantization_config"] = config.pop("quantization_config")


def old_name_below_text(config: Config) -> None:
    config["text_config"]["compression_config"] = config.pop("quantization_config")


@pytest.mark.parametrize(
    ("change", "place", "lost_on"),
    [
        (renamed_section, "compression_config", {"transformers"}),
        (below_text, "text_config.quantization_config", {"sglang"}),
        (old_name_below_text, "text_config.compression_config", {"transformers", "vllm", "sglang"}),
    ],
)
def test_a_section_is_lost_on_the_engines_that_do_not_look_there(
    change: Callable[[Config], object], place: str, lost_on: set[str], copied: Callable[..., Path]
) -> None:
    directory = copied("31B", change)
    found = judged(directory)
    assert {engine for engine, one in loads(found).items() if one is Loads.NO} == lost_on
    for engine in ("transformers", "vllm", "sglang"):
        told = judged(directory, engine)
        subjects = {one.subject for one in told.report.of(Severity.FAIL) if one.level == "static"}
        assert (exit_code(told), subjects) == ((1, {place}) if engine in lost_on else (0, set()))
    assert fixed(directory).changes == (f"{place} -> quantization_config",)


@pytest.mark.parametrize(
    "entry", [r"re:^model\.vision_embeder.*", "model.language_model.layers.99.mlp", "re:vision_tower$"]
)
def test_a_dead_entry_goes_although_everything_loads(entry: str, copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("nothing", entry))
    assert loads(judged(directory))["vllm"] is Loads.YES
    assert fix(directory) is not None
    assert entry not in read(directory)["quantization_config"]["ignore"]


@pytest.mark.parametrize(
    "change",
    [
        moved_below_text,
        lambda config: config.update(compression_config=config.pop("quantization_config") | {"ignore": []}),
    ],
)
def test_a_section_in_another_place_is_replaced(
    change: Callable[[Config], object], copied: Callable[..., Path], good: Callable[[str], Path]
) -> None:
    directory = copied("31B", change)
    assert fix(directory) is not None
    assert read(directory) == read(good("31B"))


@pytest.mark.parametrize("change", [status("frozen"), renamed_section, lambda c: c["quantization_config"].pop(STATUS)])
def test_what_transformers_alone_does_not_read_warns_the_others(
    change: Callable[[Config], object], copied: Callable[..., Path]
) -> None:
    directory = copied("31B", change)
    assert {engine: exit_code(judged(directory, engine)) for engine in ("transformers", "vllm", "sglang")} == {
        "transformers": 1,
        "vllm": 0,
        "sglang": 0,
    }
    assert judged(directory, "vllm").report.verdict is Severity.WARN
    found = judged(directory)
    assert exit_code(found) == 1
    assert loads(found) == {"transformers": Loads.NO, "vllm": Loads.YES, "sglang": Loads.YES}


def test_a_broken_pattern_stops_every_engine(copied: Callable[..., Path]) -> None:
    found = judged(copied("31B", without("nothing", "re:(")))
    assert set(loads(found).values()) == {Loads.NO}
