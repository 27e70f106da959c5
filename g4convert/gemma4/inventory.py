"""The inventory of a source checkpoint: the role and the bytes of each tensor, by canonical name.

`resolve` is total: every source tensor becomes a weight, several weights (fused experts) or an extra with a reason,
and every weight that the architecture needs has exactly one source. Otherwise `resolve` raises an error that names all
offenders.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.faults import MatchedTensors, raise_faults
from g4convert.gemma4.matching import DialectUse, Match, match_source
from g4convert.gemma4.roles import Expected, Role
from g4convert.gemma4.schema import ExtraKind, FusedExperts, expected_weights
from g4convert.names import Name
from g4convert.tensors import DType, TensorInfo


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes [begin, end) of a source tensor."""

    source: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the model; each projection of each expert is a weight of its own.

    Args:
        name: canonical stored name.
        role: role of the weight.
        dtype: dtype in the source.
        shape: canonical shape; for a Linear, [out_features, in_features].
        linear: True for the weight of a Linear or of an expert's projection.
        segment: its bytes in the source.
        channels_last: True for a convolution's weight whose bytes are in the order [out, *kernel, in].
    """

    name: str
    role: Role
    dtype: DType
    shape: tuple[int, ...]
    linear: bool
    segment: Segment
    channels_last: bool = False

    @property
    def module(self) -> Name:
        """Dotted path of the module that owns the weight."""
        return Name(self.name).owner

    @property
    def info(self) -> TensorInfo:
        """The weight as a tensor to be written."""
        return TensorInfo(self.name, self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Extra:
    """A source tensor that a conversion drops.

    Args:
        source: name in the source.
        kind: fact that must hold before the tensor is dropped.
        reason: the same fact, in words.
        twin: source tensor that it must equal, if `kind` is `tied`; otherwise None.
    """

    source: str
    kind: ExtraKind
    reason: str
    twin: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """All tensors of a source checkpoint, as weights (in the order of a forward pass) and extras."""

    architecture: Architecture
    weights: tuple[Weight, ...]
    extras: tuple[Extra, ...]
    dialects: tuple[DialectUse, ...]

    def untied(self) -> "Inventory":
        """Return the inventory with the output head as a weight of its own; a tied head gets the embedding's bytes."""
        if not self.architecture.tied_embeddings:
            return self
        table = next(weight for weight in self.weights if weight.role is Role.EMBEDDING)
        head = replace(table, name="lm_head.weight", role=Role.LM_HEAD, linear=True)
        paths = [self.architecture.decoder_path(weight.name) for weight in self.weights]
        behind = max(place for place, path in enumerate(paths) if path is not None) + 1
        weights = (*self.weights[:behind], head, *self.weights[behind:])
        return replace(self, architecture=self.architecture.untied(), weights=weights)

    @property
    def missing_limits(self) -> int:
        """Number of clip limits that `use_clipped_linears` requires and the source lacks."""
        limits = {name for name, of in expected_weights(self.architecture).items() if of.role is Role.CLIP}
        return len(limits - {weight.name for weight in self.weights})


def resolve(
    tensors: Mapping[str, TensorInfo],
    architecture: Architecture,
    *,
    config: Mapping[str, Any] | None = None,
    decoder_only: bool = False,
) -> Inventory:
    """Return the inventory of a checkpoint.

    k_proj and v_proj of KV-shared layers are weights of the role `kv_shared`; the caller keeps or drops them.

    Args:
        tensors: every stored tensor, by name; the order does not matter.
        architecture: architecture that the config gives.
        config: the config itself; with it, an error can name the config key that does not fit the tensors.
        decoder_only: allow towers and embedders to be missing.

    Raises:
        UnsupportedError: the checkpoint is already quantized; names the format.
        InputError: an adapter is not merged; or names are unknown, ambiguous or missing, or shapes or dtypes do not
            fit. Names all offenders, and the nearest known name for each unknown name.
    """
    match = match_source(tensors, architecture)
    raise_faults(MatchedTensors(match, tensors, architecture, config, decoder_only=decoder_only))
    sources = {name: found[0] for name, found in match.sources.items()}
    places = dict(_places(match, sources, tensors))
    weights = tuple(
        _weight(name, expected, tensors[place.source], place)
        for name, expected in match.schema.expected.items()
        if (place := places.get(name))
    )
    dialects = (*match.dialects, *_check_channels_last(weights), *_single_values(weights, tensors))
    return Inventory(architecture, weights, tuple(_extras(match, sources, architecture)), dialects)


def _weight(name: str, expected: Expected, info: TensorInfo, place: Segment) -> Weight:
    """Return a weight; both orders of a convolution's bytes are equal if its kernel or its inputs have size 1."""
    last = expected.convolution and info.shape != expected.shape
    moved = last and expected.shape[1] > 1 and prod(expected.shape[2:]) > 1
    return Weight(name, expected.role, info.dtype, expected.shape, expected.linear, place, channels_last=moved)


def _check_channels_last(weights: Iterable[Weight]) -> Iterator[DialectUse]:
    """Yield the habit of storing convolutions with channels last, if any weight has it."""
    moved = [weight for weight in weights if weight.channels_last]
    if moved:
        described = "convolutions with channels last, as MLX holds them"
        yield DialectUse("channels-last", described, len(moved), (moved[0].segment.source, moved[0].name))


def _single_values(weights: Iterable[Weight], tensors: Mapping[str, TensorInfo]) -> Iterator[DialectUse]:
    """Yield the habit of storing single values in another shape, if any weight has it: [] and [1] hold the same."""
    wrong = [
        weight for weight in weights if prod(weight.shape) == 1 and tensors[weight.segment.source].shape != weight.shape
    ]
    if wrong:
        shapes = f"{[*tensors[wrong[0].segment.source].shape]} in place of {[*wrong[0].shape]}"
        described = f"single values of the shape {shapes}"
        yield DialectUse("single-values", described, len(wrong), (wrong[0].segment.source, wrong[0].name))


def _places(
    match: Match, sources: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, Segment]]:
    """Yield canonical name and bytes of every weight with a source."""
    experts = match.schema.experts
    for name, source in sources.items():
        if fused := experts.get(name):
            yield from _split(fused, source, tensors[source].dtype)
        elif name in match.schema.expected:
            yield name, Segment(source, 0, tensors[source].nbytes)


def _split(fused: FusedExperts, source: str, dtype: DType) -> Iterator[tuple[str, Segment]]:
    """Yield name and bytes of each single expert in a fused tensor [e, rows, k]: parts of equal size, in order."""
    _, rows, k = fused.shape
    size = rows // len(fused.projections) * k * dtype.itemsize
    for i, name in enumerate(fused.names):
        yield name, Segment(source, i * size, (i + 1) * size)


def _extras(match: Match, sources: Mapping[str, str], architecture: Architecture) -> Iterator[Extra]:
    for name, droppable in match.schema.droppable.items():
        if source := sources.get(name):
            twin = (
                sources[f"{architecture.text_prefix}embed_tokens.weight"] if droppable.kind is ExtraKind.TIED else None
            )
            yield Extra(source, droppable.kind, droppable.reason, twin)
    for source in match.derived:
        yield Extra(source, ExtraKind.DERIVED, "every loader computes this buffer from the config")
