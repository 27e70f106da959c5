"""docs/concepts/engines.md, made from the contracts; `make golden` writes it anew."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from g4convert.engines import CONTRACTS, VERSIONS
from g4convert.engines.module import LM_HEAD, Accepts
from g4convert.gemma4 import Architecture
from helpers.released_configs import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from g4convert.engines.contract import Contract
    from g4convert.engines.module import Module
    from helpers.released_configs import Config

_HEAD = """# Engines

Made from `g4convert/engines` by `make golden`; do not edit.

An engine first builds its modules, packed or plain as `targets` and `ignore` say under the engine's own names. Only
then does it look at the tensors. This page describes what that depends on:

- which modules there are, and how each engine calls them;
- which models an engine does not start with;
- in which form each module may be stored;
- how entries of the config name modules;
- which problems an engine does not report.

`make test-engines` compares all of this with the engines' own model classes, quantization configs and loaders, taken
from their wheels. Their answers are recorded in `tests/golden/engines`.

## Modules

The tables list the checkpoint's modules on the left. For each engine they give the name that entries are matched
against (N is a number), and the form that may be stored: "either" is packed or plain, and "plain" is plain only, with
the reason in the notes. "No config" means that the quantization config does not reach this module: it is plain,
whatever the entries say. If a name has two rows, the second is for layers that read the keys and values of an earlier
layer.
"""
_SECTIONS = {
    "Decoder, towers and their embedders": ("E2B", "26B-A4B"),
    "Unified models: only what differs": ("12B",),
    "Text-only checkpoints: only what differs": ("text",),
    "MTP assistants": ("assistant",),
}
_MATCHING = """## How entries name modules

All engines match a pattern (`re:`) with `re.match`: it has to match from the start of a name, but not to its end.
"""
_NEEDS = """## Models that an engine does not start with

An engine stops at these before it reads a weight, whatever is packed. `make test-engines` looks for the lines of its
source that say so, which `tests/engines/sources.py` lists.
"""


def _without(family: str, key: str) -> Config:
    vision = {name: value for name, value in FAMILIES[family]["vision_config"].items() if name != key}
    return FAMILIES[family] | {"vision_config": vision}


_LACKING: Mapping[str, Config] = {
    "a text-only model whose layers have heads of several sizes, as all released ones": FAMILIES["text"],
    "a unified decoder alone, as `Gemma4UnifiedForCausalLM`": FAMILIES["unified text"],
    "a model with towers, and `vision_config` null": FAMILIES["E2B"] | {"vision_config": None},
    "a unified model, and `vision_config` null": FAMILIES["12B"] | {"vision_config": None},
    "a model with towers, as saved without `default_output_length`": _without("31B", "default_output_length"),
    "a unified model, as saved without `num_soft_tokens`": _without("12B", "num_soft_tokens"),
    "a unified model, as transformers saves it without `model_patch_size`": _without("12B", "model_patch_size"),
}
"""Models that some engine does not start with, by what they are."""
_ADDING = """## Adding an engine or a version

To add a newer version of an engine, say vLLM 0.34 while `vllm.CONTRACT` is 0.33:

1. Add the new version to `versions` of `CONTRACT`. Add the label that follows from it, with the wheel, to `GOLDEN` of
   `tests/helpers/engine_cases.py`. Copy 0.33's file in `tests/golden/engines` to the new name. `make test-engines` then
   prints each answer of the new code that differs from the contract or from what 0.33 answered.
2. If it prints none, the versions behave alike. `versions` becomes `0.33 to 0.34`, and one contract stands for both.
3. If it prints some, `CONTRACT` becomes what 0.34 does:
   - Change the rules from checkpoint modules to the engine's modules, the renames, what is dropped and what is never
     noticed. If entries are read in another way, change `_matching`, which returns a `Matching`.
   - 0.33 becomes a second `Contract` beside it, made of the same rules where possible, as `vllm.OLDEST` is. Add it to
     `VERSIONS` and `GOLDEN`.
   - `VERSIONS` holds every version that differs and that `ignore` must still be right for: the oldest that has all
     families, the newest, and those between them that differ from both. If a version need not be served any more,
     delete it, with its golden file.
4. Check the file and line that each rule and each docstring names: they are those of the newest version. Record the
   answers with `python tests/engines/compare.py --record`, and read the difference.
5. Change the limits of its kernels in `g4convert/engines/limits.py` and `split.py`, if they differ.
6. Run `make golden` for this page. Versions are also named in `docs/guides/serve.md`, `docs/reference/checks.md` and
   messages: `grep -rn "0[.]33" g4convert docs README.md tests`.

To add a new engine, also write:

1. A module in `g4convert/engines` with a `CONTRACT`, in which each fact names the file and line of the engine's source.
   Add it to `CONTRACTS`, the engines that checks and plans report.
2. An adapter in `tests/engines` that builds the engine's real classes, as `real_vllm.py` does. Add its name to `main`
   of `tests/engines/compare.py`.
"""


def text() -> str:
    """The whole page."""
    lines = [_HEAD]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    notes: dict[str, int] = {}
    for title, families in _SECTIONS.items():
        lines += _table(title, _rows(families, notes), seen)
    lines += ["Notes:", "", *(f"{number}. {note}" for note, number in notes.items()), ""]
    lines += [_NEEDS, *_needs(), ""]
    lines += [_MATCHING, *_matching(), "", *_blind(), *_older(), "", _ADDING.rstrip()]
    return "\n".join(lines) + "\n"


def _without_numbers(name: str) -> str:
    return re.sub(r"\b\d+\b", "N", name)


def _rows(families: Iterable[str], notes: dict[str, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every checkpoint module with the cell of each engine; twice where layers that share keys and values differ."""
    for family in families:
        architecture = Architecture.from_config(FAMILIES[family])
        found: defaultdict[str, dict[str, Module]] = defaultdict(dict)
        for engine, contract in CONTRACTS.items():
            for module in contract.modules(architecture):
                for shard in module.shards or (LM_HEAD,):
                    found[shard][engine] = module
        for shard, modules in found.items():
            yield _without_numbers(shard), tuple(_cell(shard, modules.get(engine), notes) for engine in CONTRACTS)


def _table(
    title: str, rows: Iterable[tuple[str, tuple[str, ...]]], seen: set[tuple[str, tuple[str, ...]]]
) -> Iterator[str]:
    yield from (f"### {title}", "", f"| checkpoint | {' | '.join(one.label for one in CONTRACTS.values())} |")
    yield f"|---|{'---|' * len(CONTRACTS)}"
    same: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for shard, cells in dict.fromkeys(rows):
        if (shard, cells) not in seen:
            same[cells].append(shard)
        seen.add((shard, cells))
    for cells, shards in same.items():
        yield f"| {', '.join(_short(shards))} | {' | '.join(cells)} |"
    yield ""


def _short(shards: list[str]) -> Iterator[str]:
    """The first in full, of the others what differs: the last part, or what follows the common start."""
    yield f"`{shards[0]}`"
    stem = shards[0].rpartition(".")[0].removesuffix(".linear")
    stem = stem.rpartition(".")[0] if shards[0].endswith(".linear") else stem
    yield from (f"`{'…' + one.removeprefix(stem) if one.startswith(stem + '.') else one}`" for one in shards[1:])


def _cell(shard: str, module: Module | None, notes: dict[str, int]) -> str:
    if module is None:
        return "no such module"
    form = "either" if module.accepts is Accepts.EITHER else "plain"
    number = f" [{notes.setdefault(module.note, len(notes) + 1)}]" if module.note else ""
    name = "the same" if module.name == shard else f"`{_without_numbers(module.name)}`"
    return f"{name if module.configured else 'no config'}: {form}{number}"


def _needs() -> Iterator[str]:
    yield f"| model | {' | '.join(one.label for one in CONTRACTS.values())} |"
    yield f"|---|{'---|' * len(CONTRACTS)}"
    for what, config in _LACKING.items():
        found = ([str(one.reason) for one in of.needs(Architecture.from_config(config))] for of in CONTRACTS.values())
        yield f"| {what} | {' | '.join('; '.join(lines) or 'starts' for lines in found)} |"


def _matching() -> Iterator[str]:
    tower = Architecture.from_config(FAMILIES["E2B"])
    readings = {one.label: one.matching(tower) for one in VERSIONS}
    yield f"| | {' | '.join(readings)} |"
    yield f"|---|{'---|' * len(readings)}"
    rows = {
        "a plain entry of `ignore` matches": lambda m: (
            "whole names" + (" and dotted ends of names" if m.suffix else "")
        ),
        "plain entries are renamed like tensors": lambda m: "yes, those with a dot" if m.renames else "no",
        "class names in `ignore`": lambda m: "count" if m.class_in_ignore else "do not count",
        "class names in `targets`": lambda m: (
            "a part of the class name is enough" if m.class_contains else "the name of the class or of a base class"
        ),
        "fused modules": lambda m: ", ".join(f"`{name}`" for name in m.fused) or "none",
        "a fused module is ignored": lambda m: (
            "no such module"
            if not m.fused
            else "if its own name is, or the names of all its shards; an error if only some of them are"
            if m.fused_name
            else "if the names of all its shards are; an error if only some of them are"
        ),
        "a module that is neither ignored nor targeted": lambda m: "an error" if m.must_target else "plain",
        "the output head is built packed": lambda m: (
            "only by a target that names it" if m.head_by_name else "like any other module, if its class is targeted"
        ),
    }
    for title, say in rows.items():
        yield f"| {title} | {' | '.join(say(matching) for matching in readings.values())} |"
    yield ""
    yield "For a drafter, vLLM reads the config again: nothing is renamed, and `gate_up_proj` is looked up as it is."


_SPELLED = {
    "decoder": "decoder of a multimodal model",
    "media": "its towers and embedders",
    "head": "its head",
    "text": "decoder of a text-only model",
    "text_head": "its head",
    "drafter": "decoder of an MTP assistant",
}
"""Field of `Spellings` -> the part of a model that it is for."""


def _blind() -> Iterator[str]:
    yield from ("## Problems that engines do not report", "")
    yield f"| | {' | '.join(one.label for one in VERSIONS)} |"
    yield f"|---|{'---|' * len(VERSIONS)}"
    yield f"| a tensor that fits nothing | {' | '.join(one.on_unknown for one in VERSIONS)} |"
    yield f"| a module without its tensors | {' | '.join(one.on_missing for one in VERSIONS)} |"
    yield f"| silently skipped | {' | '.join('; '.join(one.drops) or 'nothing' for one in VERSIONS)} |"
    yield f"| never noticed | {' | '.join('; '.join(one.blind) for one in VERSIONS)} |"
    yield ""
    yield "A loader reads tensors whose names begin as follows. A tensor with any other name fits nothing:"
    yield ""
    yield f"| | {' | '.join(one.label for one in VERSIONS)} |"
    yield f"|---|{'---|' * len(VERSIONS)}"
    for part, what in _SPELLED.items():
        known = (getattr(one.spellings, part) for one in VERSIONS)
        yield f"| {what} | {' | '.join(', '.join(f'`{one}`' if one else 'nothing' for one in of) for of in known)} |"
    yield ""


def _older() -> Iterator[str]:
    """Yield the places where an older version differs from the one above."""
    for contract in VERSIONS:
        newest = CONTRACTS[contract.engine]
        if contract is newest:
            continue
        yield from (
            f"## {contract.label} where it differs from {newest.label}",
            "",
            "| checkpoint | name, form |",
            "|---|---|",
        )
        lines: dict[str, None] = {}
        for config in FAMILIES.values():
            old, new = dict.fromkeys(_forms(contract, config)), set(_forms(newest, config))
            lines |= {f"| `{shard}` | {cell} |": None for shard, cell in old if (shard, cell) not in new}
        yield from lines


def _forms(contract: Contract, config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for module in contract.modules(Architecture.from_config(config)):
        for shard in module.shards:
            yield _without_numbers(shard), _cell(shard, module, defaultdict(int)).partition(" [")[0]
