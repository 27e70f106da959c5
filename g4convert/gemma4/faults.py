"""Faults of a checkpoint's tensors, joined into one error."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from g4convert.errors import InputError, UnsupportedError
from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.causes import TensorFault, cause, spare
from g4convert.gemma4.diagnosis import Neighbours, refuse_adapters, refuse_quantized
from g4convert.gemma4.dialects import body_of
from g4convert.gemma4.matching import Match, Schema, match_source
from g4convert.gemma4.schema import ExtraKind
from g4convert.gemma4.shape_causes import Pair, cut_shapes, padded_routers, turned_shapes, uneven_mlps
from g4convert.gemma4.wrong_keys import fitting_remedy
from g4convert.names import Name
from g4convert.tensors import DType, TensorInfo

_QUANTIZED_DTYPES = {DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0, DType.I8, DType.U8}
_INDEX_DTYPES = {DType.I32, DType.I64}


@dataclass(frozen=True, slots=True)
class MatchedTensors:
    """A checkpoint's tensors, matched with the names that its config implies.

    Args:
        match: match of stored names and canonical names.
        tensors: every stored tensor, by name.
        architecture: architecture that the config gives.
        config: the config itself; None if unknown.
        decoder_only: allow towers and embedders to be missing.
    """

    match: Match
    tensors: Mapping[str, TensorInfo]
    architecture: Architecture
    config: Mapping[str, Any] | None = None
    decoder_only: bool = False


def raise_faults(matched: MatchedTensors) -> None:
    """Raise one error with all faults, if there are any.

    Raises:
        UnsupportedError: the checkpoint is already quantized.
        InputError: an adapter is not merged, or the tensors do not make this architecture.
    """
    refuse_adapters(matched.match.unknown)
    refuse_quantized(matched.match.unknown, matched.tensors)
    _refuse_quantized_dtypes(matched.match, matched.tensors)
    faults = _faults(matched)
    if faults:
        architecture, shapes = matched.architecture, _shape_pairs(faults, matched)
        counts = Counter(fault.kind for fault in faults)
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise InputError(
            f"the tensors do not make a {architecture.family} ({architecture.model_type}): {summary}",
            offenders=[f"{fault.kind}: {fault.line}" for fault in faults],
            hint=cause(faults, matched.match.schema, architecture)
            or (turned_shapes(shapes) if shapes else "")
            or _config_remedy(matched)
            or (padded_routers({one.name: pair for one, pair in zip(faults, shapes, strict=False)}) if shapes else "")
            or (cut_shapes(shapes) if shapes and _are_everywhere(faults, matched) else "")
            or (uneven_mlps(_canonical_pairs(faults, matched, shapes)) if shapes else "")
            or spare(faults, matched.match.schema)
            or _LOOK,
        )


_LOOK = "`g4convert inspect` lists what the directory holds beside what its config.json asks for"


def _shape_pairs(
    faults: Iterable[TensorFault], matched: MatchedTensors
) -> tuple[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], ...]:
    """Return the shape of each tensor and the shapes that it may have; nothing unless every fault is a wrong shape."""
    if any(fault.kind != "of the wrong shape" for fault in faults):
        return ()
    names = {source: name for name, sources in matched.match.sources.items() for source in sources}
    return tuple((matched.tensors[one.name].shape, _shapes(matched.match.schema, names[one.name])) for one in faults)


def _canonical_pairs(faults: Iterable[TensorFault], matched: MatchedTensors, shapes: Iterable[Pair]) -> dict[str, Pair]:
    """Return the pairs of `_shape_pairs` by canonical name."""
    names = {source: name for name, sources in matched.match.sources.items() for source in sources}
    return {names[one.name]: pair for one, pair in zip(faults, shapes, strict=True)}


def _are_everywhere(faults: Iterable[TensorFault], matched: MatchedTensors) -> bool:
    """Return whether no tensor of a faulty kind is sound in any layer."""
    names = {source: name for name, sources in matched.match.sources.items() for source in sources}
    faulty = {names[fault.name] for fault in faults}
    kinds = {Name(name).unnumbered()[0] for name in faulty}
    return all(name in faulty for name in matched.match.sources if Name(name).unnumbered()[0] in kinds)


def _config_remedy(matched: MatchedTensors) -> str:
    """Return a remedy with the config keys to change; empty where no values make the config fit the tensors."""
    if matched.config is None:
        return ""

    def fits(architecture: Architecture) -> bool:
        match = match_source(matched.tensors, architecture)
        return not _faults(MatchedTensors(match, matched.tensors, architecture, decoder_only=matched.decoder_only))

    return fitting_remedy(matched.match, matched.tensors, matched.config, fits)


def _faults(matched: MatchedTensors) -> tuple[TensorFault, ...]:
    return (
        *_unknown(matched.match),
        *_ambiguous(matched.match),
        *_missing(matched),
        *_misshapen(matched.match, matched.tensors),
        *_wrong_dtypes(matched.match, matched.tensors),
    )


def _refuse_quantized_dtypes(match: Match, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise if tensors with known names hold 8-bit numbers.

    Raises:
        UnsupportedError: such a tensor exists.
    """
    found = [source for sources in match.sources.values() for source in sources]
    packed = [source for source in found if tensors[source].dtype in _QUANTIZED_DTYPES]
    if packed:
        dtype = tensors[packed[0]].dtype
        raise UnsupportedError(
            f"already quantized: {len(packed)} tensors are {dtype}, such as {packed[0]}",
            hint="start from the bf16 checkpoint; `g4convert inspect` describes this one",
        )


def _unknown(match: Match) -> Iterator[TensorFault]:
    if not match.unknown:
        return
    biases = {name for name, one in match.schema.droppable.items() if one.kind is ExtraKind.ZEROS}
    neighbours = Neighbours({body_of(name): name for name in match.schema.names if name not in biases})
    for name, body in match.unknown.items():
        near = neighbours.nearest(body)
        yield TensorFault("unknown", name, f"{name}; nearest: {near}" if near else name)


def _ambiguous(match: Match) -> Iterator[TensorFault]:
    """Yield names with several sources, and experts that are stored in several forms."""
    for name, sources in match.sources.items():
        if len(sources) > 1:
            yield TensorFault("ambiguous", name, f"{' and '.join(sources)} both name {name}")
    holders: dict[str, list[str]] = defaultdict(list)
    for fused, experts in match.schema.experts.items():
        if fused in match.sources:
            for name in experts.names:
                holders[name].append(match.sources[fused][0])
    for name, fused_ones in holders.items():
        every = (*fused_ones, *match.sources.get(name, ())[:1])
        if len(every) > 1:
            yield TensorFault("ambiguous", name, f"{' and '.join(every)} both hold {name}")


def _missing(matched: MatchedTensors) -> Iterator[TensorFault]:
    """Yield required names without a source; one fault covers a layer's experts that are missing as a whole."""
    match, architecture = matched.match, matched.architecture
    held = {name for fused, of in match.schema.experts.items() if fused in match.sources for name in of.names}
    held |= match.sources.keys()
    whole: set[str] = set()
    for fused, experts in match.schema.fused.items():
        if not any(name in held for name in experts.names):
            whole.update(experts.names)
            yield TensorFault(
                "missing", fused, f"{fused}, or all of {experts.prefix}*.{{{','.join(experts.projections)}}}"
            )
    for name, expected in match.schema.expected.items():
        needed = not (matched.decoder_only and architecture.text_name(name) is None)
        if needed and not expected.optional and name not in held and name not in whole:
            yield TensorFault("missing", name, name)


def _misshapen(match: Match, tensors: Mapping[str, TensorInfo]) -> Iterator[TensorFault]:
    for name, sources in match.sources.items():
        shapes = _shapes(match.schema, name)
        for source in sources:
            if tensors[source].shape not in shapes and not (tensors[source].numel == prod(shapes[0]) == 1):
                found = f"{source}: {list(tensors[source].shape)}, expected {list(shapes[0])}"
                yield TensorFault("of the wrong shape", source, found if source == name else f"{found} for {name}")


def _shapes(schema: Schema, name: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a tensor may have, the written shape first."""
    if expected := schema.expected.get(name):
        return (expected.shape, expected.channels_last) if expected.convolution else (expected.shape,)
    if fused := schema.fused.get(name) or schema.stacked.get(name):
        return (fused.shape,)
    return (schema.droppable[name].shape,)


def _wrong_dtypes(match: Match, tensors: Mapping[str, TensorInfo]) -> Iterator[TensorFault]:
    """Yield weights that are not BF16, F16 or F32, and indices that are not I64 or I32."""
    for name, sources in match.sources.items():
        expected = match.schema.expected.get(name)
        integer = expected is not None and expected.integer
        for source in sources:
            dtype = tensors[source].dtype
            if not (dtype in _INDEX_DTYPES if integer else dtype.is_weight):
                wanted = "I64 or I32" if integer else "BF16, F16 or F32"
                yield TensorFault("of the wrong dtype", source, f"{source}: {dtype}, expected {wanted}")
