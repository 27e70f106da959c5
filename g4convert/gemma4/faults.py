"""What is wrong with a checkpoint's tensors, all of it, in the words of one error."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from g4convert.errors import InputError, UnsupportedError
from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.diagnosis import Neighbours, refuse_adapters, refuse_quantized
from g4convert.gemma4.dialects import body_of
from g4convert.gemma4.matching import Match, Schema
from g4convert.gemma4.roles import Role
from g4convert.tensors import DType, TensorInfo

__all__ = ["raise_faults"]

# One model, one dtype: packed weights share one scale dtype. Norms and towers are copied, so they may differ.
_ONE_DTYPE = {Role.ATTENTION, Role.MLP, Role.EXPERTS, Role.PLE_PROJECTION, Role.KV_SHARED}
_QUANTIZED_DTYPES = {DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0, DType.I8, DType.U8}
_INDEX_DTYPES = {DType.I32, DType.I64}
_MEDIA = ("vision_tower.", "audio_tower.", "vision_embedder.", "embed_vision.", "embed_audio.")


@dataclass(frozen=True, slots=True)
class _Fault:
    """One thing that is wrong; `name` is the tensor, `line` the sentence about it."""

    kind: str
    name: str
    line: str


def raise_faults(match: Match, tensors: Mapping[str, TensorInfo], architecture: Architecture) -> None:
    """Raise one error with everything that is wrong, or return.

    Raises:
        UnsupportedError: already quantized.
        InputError: an adapter that is not merged, or tensors that do not make this architecture.
    """
    refuse_adapters(match.unknown)
    refuse_quantized(match.unknown)
    _refuse_quantized_dtypes(match, tensors)
    faults = (
        *_unknown(match),
        *_ambiguous(match),
        *_missing(match),
        *_misshapen(match, tensors),
        *_wrong_dtypes(match, tensors),
        *_mixed_dtypes(match, tensors),
    )
    if faults:
        counts = Counter(fault.kind for fault in faults)
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise InputError(
            f"the tensors do not make a {architecture.family} ({architecture.model_type}): {summary}",
            offenders=[f"{fault.kind}: {fault.line}" for fault in faults],
            hint=_hint(faults, architecture),
        )


def _hint(faults: Collection[_Fault], architecture: Architecture) -> str:
    """The likeliest cause."""
    unknown = [fault.name for fault in faults if fault.kind == "unknown"]
    missing = [fault.name for fault in faults if fault.kind == "missing"]
    if unknown and not architecture.is_composite and all(_is_media(name) for name in unknown):
        return "config.json describes the text model alone: use the multimodal one (and --layout text-only)"
    if missing and len(missing) == len(faults) and all(_is_media(name) for name in missing):
        return "the weights are those of the text model alone: use a text-only config.json"
    return "config.json and all weight files must come from one saving of one model"


def _is_media(name: str) -> bool:
    return any(part in name for part in _MEDIA)


def _refuse_quantized_dtypes(match: Match, tensors: Mapping[str, TensorInfo]) -> None:
    """Known names that hold 8-bit numbers."""
    found = [source for sources in match.sources.values() for source in sources]
    packed = [source for source in found if tensors[source].dtype in _QUANTIZED_DTYPES]
    if packed:
        dtype = tensors[packed[0]].dtype
        raise UnsupportedError(
            f"already quantized: {len(packed)} tensors are {dtype}, such as {packed[0]}",
            hint="start from the bf16 checkpoint; `g4convert inspect` describes this one",
        )


def _unknown(match: Match) -> Iterator[_Fault]:
    if not match.unknown:
        return
    neighbours = Neighbours({body_of(name): name for name in match.schema.names})
    for name, body in match.unknown.items():
        near = neighbours.nearest(body)
        yield _Fault("unknown", name, f"{name}; nearest: {near}" if near else name)


def _ambiguous(match: Match) -> Iterator[_Fault]:
    """Several sources for one name, or an expert both fused and on its own."""
    for name, sources in match.sources.items():
        if len(sources) > 1:
            yield _Fault("ambiguous", name, f"{' and '.join(sources)} both name {name}")
    for fused, experts in match.schema.fused.items():
        if fused in match.sources:
            for name in experts.names:
                if name in match.sources:
                    sources = (match.sources[fused][0], match.sources[name][0])
                    yield _Fault("ambiguous", name, f"{' and '.join(sources)} both hold {name}")


def _missing(match: Match) -> Iterator[_Fault]:
    """Required names without a source; experts that are missing as a whole in one line."""
    whole: set[str] = set()
    for fused, experts in match.schema.fused.items():
        if fused in match.sources:
            whole.update(experts.names)
        elif not any(name in match.sources for name in experts.names):
            whole.update(experts.names)
            yield _Fault("missing", fused, f"{fused}, or all of {experts.prefix}*.{{{','.join(experts.projections)}}}")
    for name, expected in match.schema.expected.items():
        if not expected.optional and name not in match.sources and name not in whole:
            yield _Fault("missing", name, name)


def _misshapen(match: Match, tensors: Mapping[str, TensorInfo]) -> Iterator[_Fault]:
    for name, sources in match.sources.items():
        shape = _shape(match.schema, name)
        for source in sources:
            if tensors[source].shape != shape:
                found = f"{source}: {list(tensors[source].shape)}, expected {list(shape)}"
                yield _Fault("of the wrong shape", source, found if source == name else f"{found} for {name}")


def _shape(schema: Schema, name: str) -> tuple[int, ...]:
    if expected := schema.expected.get(name):
        return expected.shape
    if fused := schema.fused.get(name):
        return fused.shape
    return schema.droppable[name].shape


def _wrong_dtypes(match: Match, tensors: Mapping[str, TensorInfo]) -> Iterator[_Fault]:
    """Weights that are not floats of a size we read, indices that are not integers."""
    for name, sources in match.sources.items():
        expected = match.schema.expected.get(name)
        integer = expected is not None and expected.integer
        for source in sources:
            dtype = tensors[source].dtype
            if not (dtype in _INDEX_DTYPES if integer else dtype.is_weight):
                wanted = "I64 or I32" if integer else "BF16, F16 or F32"
                yield _Fault("of the wrong dtype", source, f"{source}: {dtype}, expected {wanted}")


def _mixed_dtypes(match: Match, tensors: Mapping[str, TensorInfo]) -> Iterator[_Fault]:
    """Linears of the decoder that differ from most of them."""
    by_dtype: dict[DType, list[str]] = defaultdict(list)
    for name, sources in match.sources.items():
        expected = match.schema.expected.get(name)
        if name in match.schema.fused or (expected and expected.linear and expected.role in _ONE_DTYPE):
            by_dtype[tensors[sources[0]].dtype].append(sources[0])
    if len(by_dtype) > 1:
        most = max(by_dtype, key=lambda dtype: len(by_dtype[dtype]))
        for dtype, found in by_dtype.items():
            for source in found if dtype is not most else ():
                yield _Fault("of a mixed dtype", source, f"{source}: {dtype}, most Linears are {most}")
