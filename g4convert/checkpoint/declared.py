"""Reads the quantization section of a config.json, whoever wrote it.

    quant_method          what is read
    compressed-tensors    config_groups (targets, weights), format, ignore
    awq                   bits, group_size, zero_point, modules_to_not_convert
    gptq                  bits, group_size, sym, dynamic ("-:" patterns)
    auto-round            bits, group_size, sym, extra_config (modules of 16 bits), block_name_to_quantize
    modelopt              ignore or exclude_modules

`sections` finds it, and `entries` matches its entries against names. Ill-typed values are kept as faults: describing
a checkpoint must not fail on a strange config.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from g4convert.checkpoint.arguments import DEFAULTS, implied_strategy, refusal_reasons, type_faults
from g4convert.checkpoint.entries import COMPRESSED_TENSORS
from g4convert.checkpoint.sections import section_of
from g4convert.checkpoint.stored import StoredScheme

_ONE_SCHEME: Final = {"awq", "gptq", "auto-round", "modelopt"}
_NAIVE: Final = "naive-quantized"
_NO_FORMAT: Final = {"mixed-precision", "dense", _NAIVE}  # do not say how a weight is stored
_UNQUANTIZED_BITS: Final = 16
_PRESET: Final = re.compile(r"W(\d)A16(_ASYM)?")
_MOST_ENTRIES: Final = 20_000
_MOST_PATTERNS: Final = 2_000
"""Limits of a list: the largest model has 12,000 Linears, which somebody may name one by one."""
_COMPARED: Final = ("actorder", "dynamic", "observer", "observer_kwargs", "scale_dtype", "zp_dtype")


@dataclass(frozen=True, slots=True)
class DeclaredGroup:
    """A scheme and its targets; None stands for a value that the config leaves open.

    `format` may be that of the whole section, as `inherited` says; not all engines read that.
    `static_int8` is true if inputs and outputs are both int8, with one stored scale each. `dynamic` says what inputs
    alone become as they come: `int` for symmetric int4 or int8 per token or group, else the type. `implied` names the
    values that compressed-tensors fills in. `rest` holds settings that do not affect stored tensors, but that engines
    compare.
    """

    name: str
    targets: tuple[str, ...]
    format: str | None = None
    kind: str | None = None
    num_bits: int | None = None
    strategy: str | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    activations: str | None = None
    static_int8: bool = False
    dynamic: str = ""
    inherited: bool = False
    implied: frozenset[str] = frozenset()
    rest: tuple[tuple[str, str], ...] = ()

    @property
    def has_activations(self) -> bool:
        """True if inputs or outputs are quantized."""
        return self.activations is not None or self.static_int8

    def meant_by(self, stored: StoredScheme) -> StoredScheme:
        """Return a stored scheme as this group says it: a scale [n, 1] is one of each row, or of a group of all k."""
        k = stored.shape[-1] if stored.shape else None
        if stored.strategy != "channel" or k is None or self.group_size != k:
            return stored
        return replace(stored, strategy="group", group_size=k)

    def differs_from(self, stored: StoredScheme) -> str:
        """Return the difference to a stored scheme, or empty; a value that either side leaves open never differs."""
        stored = self.meant_by(stored)
        pairs = {
            "num_bits": (self.num_bits, stored.num_bits),
            "type": (self.kind, stored.kind),
            "strategy": (self.strategy, stored.strategy),
            "group_size": (self.group_size, stored.group_size),
            "symmetric": (self.symmetric, stored.symmetric),
            "format": (None if self.inherited else self.format, stored.format),
        }
        return ", ".join(
            f"{field} {declared} in the config{self._note_default(field)}, {found} stored"
            for field, (declared, found) in pairs.items()
            if declared is not None and found is not None and declared != found
        )

    def _note_default(self, field: str) -> str:
        return " (the default, as it is left out)" if field in self.implied else ""


@dataclass(frozen=True, slots=True)
class Declared:
    """A config's quantization section.

    Args:
        method: `quant_method`; None if the section has none.
        groups: schemes, in the config's order.
        ignore: entries of modules that are not quantized.
        faults: values that could not be read.
    """

    method: str | None
    groups: tuple[DeclaredGroup, ...]
    ignore: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """True if the section declares no quantization, like the marker in Google's QAT sources."""
        return self.method is None and not self.groups


class _Reader:
    """Reads loosely typed values and collects what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def get(self, table: Mapping[str, Any], kind: type, *keys: str) -> Any:  # noqa: ANN401 -- of `kind`
        for key in keys:
            value = table.get(key)
            if value is None:
                continue
            if type(value) is kind:
                return value
            self.faults.append(f"{key} is {value!r:.40}, expected {kind.__name__}")
        return None

    def strings(self, table: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
        values = self.get(table, list, *keys) or []
        patterns = sum(isinstance(value, str) and value.startswith("re:") for value in values)
        if len(values) > _MOST_ENTRIES or patterns > _MOST_PATTERNS:
            most = f"at most {_MOST_ENTRIES:,} with {_MOST_PATTERNS:,} patterns are read"
            self.faults.append(f"{keys[0]} has {len(values):,} entries with {patterns:,} patterns, {most}")
            return ()
        self.faults.extend(f"{keys[0]} holds {v!r:.40}, expected text" for v in values if not isinstance(v, str))
        return tuple(value for value in values if isinstance(value, str))


def declared_in(config: Mapping[str, Any]) -> Declared | None:
    """Read the quantization section; return None if there is none.

    A section without a method, such as the marker in Google's QAT sources, declares nothing.
    """
    _, section = section_of(config)
    if section is None:
        return None
    if not isinstance(section, dict):
        return Declared(None, (), (), (f"quantization_config is a {type(section).__name__}, expected an object",))
    read = _Reader()
    method = read.get(section, str, "quant_method")
    groups: tuple[DeclaredGroup, ...]
    if "config_groups" in section:
        groups, ignore = _config_groups(read, section, method), read.strings(section, "ignore")
    elif method in _ONE_SCHEME:
        groups, ignore = (_single_group(read, section, method),), _exceptions(read, section)
    else:
        groups, ignore = (), ()
    return Declared(method, groups, ignore, tuple(read.faults))


def _config_groups(read: _Reader, section: Mapping[str, Any], method: str | None) -> tuple[DeclaredGroup, ...]:
    groups = []
    for name, group in (read.get(section, dict, "config_groups") or {}).items():
        if isinstance(group, list):  # a preset: {"W4A16": ["Linear"]}
            groups.append(_preset(name, read.strings({"targets": group}, "targets")))
        elif isinstance(group, dict):
            declared = _group(read, name, group, read.get(section, str, "format"))
            weights = group.get("weights")
            if method == COMPRESSED_TENSORS and isinstance(weights, dict):
                read.faults.extend(
                    f"config_groups.{name}.weights, which engines refuse: {why}" for why in refusal_reasons(weights)
                )
                declared = _fill_in(declared, weights)
            if method == COMPRESSED_TENSORS:
                read.faults.extend(_refused_activations(name, group))
            groups.append(declared)
        else:
            read.faults.append(f"config_groups.{name} is a {type(group).__name__}, expected an object")
    return tuple(groups)


def _refused_activations(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    """Yield why compressed-tensors refuses what a group says about inputs and outputs."""
    for key in ("input_activations", "output_activations"):
        if isinstance(activations := group.get(key), dict):
            faults = (*refusal_reasons(activations), *type_faults(activations))
            yield from (f"config_groups.{name}.{key}, which engines refuse: {why}" for why in faults)


def _preset(name: str, targets: tuple[str, ...]) -> DeclaredGroup:
    """Return a group that compressed-tensors has a scheme for; of its sizes releases differ."""
    if (preset := _PRESET.fullmatch(name.upper())) is None:
        return DeclaredGroup(name, targets)
    return DeclaredGroup(name, targets, kind="int", num_bits=int(preset[1]), symmetric=preset[2] is None)


def _group(read: _Reader, name: str, group: Mapping[str, Any], form: str | None) -> DeclaredGroup:
    stated_weights = read.get(group, dict, "weights")
    weights = stated_weights or {}
    inputs, outputs = (read.get(group, dict, f"{part}_activations") for part in ("input", "output"))
    size, strategy, kind = (
        read.get(weights, *place) for place in ((int, "group_size"), (str, "strategy"), (str, "type"))
    )
    strategy = strategy.lower() if strategy else _strategy(size)
    if strategy == "tensor_group" and kind == "float":
        strategy = "group"  # NVFP4; integers have no scale of the whole tensor beside those of groups
    own_format = read.get(group, str, "format")
    stated_format, vague = own_format or form, _NO_FORMAT if own_format is None else {_NAIVE}
    return DeclaredGroup(
        name=name,
        targets=read.strings(group, "targets"),
        format=None if stated_format in vague else stated_format,
        kind=kind.lower() if kind else None if stated_weights is None else "int",
        num_bits=read.get(weights, int, "num_bits"),
        strategy=strategy,
        group_size=size if strategy in {"group", "tensor_group"} else None,
        symmetric=read.get(weights, bool, "symmetric"),
        activations=f"{inputs.get('type', 'int')}{inputs.get('num_bits', '?')}" if inputs else None,
        static_int8=all(map(_is_static_int8, (inputs, outputs))),
        dynamic=_dynamic(inputs) if inputs and outputs is None else "",
        inherited=own_format is None,
        rest=tuple((key, repr(weights[key])) for key in _COMPARED if weights.get(key)),
    )


def _dynamic(inputs: Mapping[str, Any]) -> str:
    """Return what inputs become while a model runs, see `DeclaredGroup`; empty if they have stored scales."""
    if inputs.get("dynamic") is not True:
        return ""
    kind, strategy = (str(inputs.get(key) or "").lower() for key in ("type", "strategy"))
    symmetric, bits = inputs.get("symmetric", True) is True, inputs.get("num_bits", 8)
    if kind in {"", "int"} and symmetric and bits in {4, 8} and strategy in {"token", "group"}:
        return "int"
    return f"{kind or 'int'}{bits} by {strategy or 'tensor'}{'' if symmetric else ', asymmetric'}"


def _is_static_int8(activations: Mapping[str, Any] | None) -> bool:
    """Return whether activations are int8 with one stored scale, which is also the default of missing keys."""
    if activations is None:
        return False
    expected = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}
    return all(activations.get(key) in {value, None} for key, value in expected.items())


def _fill_in(group: DeclaredGroup, weights: Mapping[str, Any]) -> DeclaredGroup:
    """Return a group with the defaults that compressed-tensors fills in."""
    implied = {key: value for key, value in DEFAULTS.items() if key not in weights}
    if weights.get("strategy") is None and weights.get("group_size") is None:
        implied["strategy"] = implied_strategy(None)
    return replace(group, **implied, implied=frozenset(implied))


def _single_group(read: _Reader, section: Mapping[str, Any], method: str) -> DeclaredGroup:
    """Return a group with one scheme for every Linear."""
    size = read.get(section, int, "group_size", "q_group_size")
    symmetric = read.get(section, bool, "sym")
    zero_point = read.get(section, bool, "zero_point")
    if symmetric is None and zero_point is not None:
        symmetric = not zero_point
    return DeclaredGroup(
        name=method,
        targets=_blocks(read, section) or ("Linear",),
        format=method if method in {"awq", "gptq"} else None,
        num_bits=read.get(section, int, "bits", "w_bit"),
        strategy=_strategy(size),
        group_size=size if size and size > 0 else None,
        symmetric=symmetric,
    )


def _blocks(read: _Reader, section: Mapping[str, Any]) -> tuple[str, ...]:
    """Return prefixes of names that auto-round quantizes; empty means all (vLLM 0.33 `inc/config_parser.py:172`)."""
    for key in ("block_name_to_quantize", "to_quant_block_names"):
        prefixes = section.get(key)
        names = prefixes.split(",") if isinstance(prefixes, str) else read.strings(section, key)
        if names:
            return tuple(f"{name}*" for name in names)
    return ()


def _strategy(group_size: int | None) -> str | None:
    if group_size is None:
        return None
    return "group" if group_size > 0 else "channel"


def _exceptions(read: _Reader, section: Mapping[str, Any]) -> tuple[str, ...]:
    dynamic = read.get(section, dict, "dynamic") or {}
    extra = read.get(section, dict, "extra_config") or {}
    plain = [name for name, scheme in extra.items() if isinstance(scheme, dict) and _bits(scheme) >= _UNQUANTIZED_BITS]
    return (
        *read.strings(section, "modules_to_not_convert"),
        *read.strings(section, "ignore", "exclude_modules"),
        *(f"re:{pattern.removeprefix('-:')}" for pattern in dynamic if pattern.startswith("-:")),
        *plain,
    )


def _bits(scheme: Mapping[str, Any]) -> int:
    bits = scheme.get("bits")
    return bits if isinstance(bits, int) else 0
