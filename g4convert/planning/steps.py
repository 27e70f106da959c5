"""Makes the plan: decides the step of every source tensor.

The plan is a pure function of the config, the tensor headers and the recipe: no weight is read, and no later stage
decides anything.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from operator import itemgetter
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.uses import inventory_of
from g4convert.engines.limits import Packing
from g4convert.errors import InputError
from g4convert.gemma4 import (
    Architecture,
    Extra,
    ExtraKind,
    Role,
    Segment,
    Weight,
)
from g4convert.names import Name
from g4convert.planning.packings import Packable, decide_packings, find_packable
from g4convert.planning.plan import Copy, Drop, Plan, Quantize, Step, outputs_of
from g4convert.planning.recipe import Recipe
from g4convert.planning.remarks import DRAFTER_KEPT, find_remarks
from g4convert.quantities import size
from g4convert.tensors import DType, TensorInfo

KEPT_BECAUSE: Mapping[Role, str] = {
    Role.ATTENTION: "the recipe keeps it",
    Role.MLP: "the recipe keeps it",
    Role.EXPERTS: "the recipe keeps it",
    Role.ROUTER: "decides which experts run; engines build it unquantized",
    Role.EMBEDDING: "`--bits embedding=8` would save {saved} of it; loads in vLLM only",
    Role.PLE_EMBEDDING: "`--bits ple_embedding=8` would save {saved} of it; loads in vLLM only",
    Role.PLE_PROJECTION: "1 % of the size, doubles the loss when packed; `pack: [..., ple_projection]` packs it",
    Role.LM_HEAD: "its rounding shows in every token; `--bits lm_head=8` packs it",
    Role.NORM: "one value per channel",
    Role.SCALAR: "a single value",
    Role.CLIP: "calibrated limits, single values",
    Role.VISION_TOWER: "small, and engines build parts of it unquantized",
    Role.AUDIO_TOWER: "engines build it unquantized",
    Role.EMBEDDER: "projects images and sound into the decoder; engines build it unquantized",
    Role.KV_SHARED: "kept by option, for engines that still read it",
    Role.DRAFTER: "engines build it unquantized",
}
"""Reasons why tensors of a role are not packed, as `plan` prints them; `saved` is what packing the table saves."""

_TIED_ROLES = {Role.EMBEDDING, Role.LM_HEAD}
"""Roles that share one tensor in a tied model, until either is packed."""
_TIED = (
    "shared with the output head; `-r w4a16-g32-head8` would split it into a 4-bit embedding and an 8-bit head: "
    "{after} instead of {before}; loads in vLLM only"
)
_SAVED: Final = 7.5 / 16
"""Share of a table that 8 bits with a scale for each 32 weights save."""
_SAVED_TIED: Final = 3.5 / 16
"""Share of a tied table that remains saved after it becomes two, of 4.5 and 8 bits; scales of its rows come on top."""
_BYTES_OF_SCALE: Final = 2


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Make the plan: decide the step of every source tensor.

    Raises:
        UnsupportedError: the model type is unknown, or the source is already quantized.
        InputError: names, shapes or dtypes do not make a Gemma 4 checkpoint; names all offenders.
        UsageError: the recipe does not fit the model; see `packings`.
    """
    source = Architecture.from_config(checkpoint.config)
    text_only = recipe.layout == "text-only"
    architecture = source.text_only() if text_only else source
    inventory = inventory_of(checkpoint, source, decoder_only=text_only and source.is_composite)
    untied = inventory.untied()
    named = {weight.name: name for weight in untied.weights if (name := source.name_in(architecture, weight.name))}
    packed = decide_packings(recipe, architecture.untied(), untied, named)
    if not {weight.name for weight in untied.weights if weight.role in _TIED_ROLES}.isdisjoint(packed):
        inventory = untied
        architecture = architecture.untied() if text_only else untied.architecture
    steps: list[Step] = []
    fused: dict[str, list[Weight]] = defaultdict(list)
    for weight in inventory.weights:
        name = named.get(weight.name)
        if name is None:
            steps.append(Drop(checkpoint.tensors[weight.segment.source].info, "not part of a text-only checkpoint"))
        elif weight.role is Role.KV_SHARED and recipe.kv_shared == "drop":
            steps.append(Drop(checkpoint.tensors[weight.segment.source].info, _KV_DROPPED))
        elif weight.name in packed:
            steps.append(_make_quantize(weight, name, packed[weight.name]))
        elif weight.role is Role.EXPERTS:
            fused[_fused_name(name)].append(weight)
        else:
            steps.append(_make_copy(weight, name, inventory.architecture))
    _refuse_mixed_experts(fused)
    steps.extend(_fuse(name, weights) for name, weights in fused.items())
    steps.extend(_make_drop(extra, checkpoint) for extra in inventory.extras)
    warnings = (*find_remarks(checkpoint, inventory, recipe), *_describe_untying(steps, source, architecture))
    return Plan(recipe, architecture, inventory, tuple(steps), warnings, checkpoint.beside)


def find_packable_in(plan: Plan) -> tuple[Packable, ...]:
    """Return every weight of a plan that a recipe may pack, packed or not, in canonical order; never a tied head."""
    source = plan.inventory.architecture
    named = {
        weight.name: name
        for weight in plan.inventory.weights
        if (name := source.name_in(plan.architecture, weight.name))
    }
    return tuple(find_packable(plan.recipe, plan.inventory, named))


def _describe_untying(steps: Iterable[Step], source: Architecture, architecture: Architecture) -> Iterator[str]:
    """Yield a remark if embedding and tied head become two tensors, with the bytes that this saves or adds."""
    if source.tied_embeddings is architecture.tied_embeddings:
        return
    nbytes: dict[Role, int] = {}
    whole = 0
    for step in steps:
        role = step.weight.role if isinstance(step, Quantize) else step.role if isinstance(step, Copy) else None
        if role in _TIED_ROLES and isinstance(step, Quantize | Copy):
            nbytes[role] = sum(info.nbytes for info in outputs_of(step))
            segment = step.weight.segment if isinstance(step, Quantize) else step.segments[0]
            whole = segment.end - segment.begin
    change = whole - sum(nbytes.values())
    yield (
        f"embedding and head were one tensor of {size(whole)}; they become two, of {size(nbytes[Role.EMBEDDING])} and "
        f"{size(nbytes[Role.LM_HEAD])}: {size(abs(change))} {'saved' if change >= 0 else 'more'}"
    )


_KV_DROPPED = "this layer reads the K/V of an earlier one; transformers and Google's QAT exports leave it out"


def _make_quantize(weight: Weight, name: str, packing: Packing) -> Quantize:
    return Quantize(weight, packing, *packed_tensors(Name(name).module, weight.shape, packing))


def packed_tensors(module: str, shape: tuple[int, ...], packing: Packing) -> tuple[TensorInfo, TensorInfo, TensorInfo]:
    """Return the three tensors that store a packed weight [n, k]: code words, scales, shape."""
    n, k = shape
    groups = k // packing.group_size if packing.group_size else 1
    return (
        TensorInfo(f"{module}.weight_packed", DType.I32, (n, ceil(k * packing.num_bits / 32))),
        TensorInfo(f"{module}.weight_scale", DType.BF16, (n, groups)),
        TensorInfo(f"{module}.weight_shape", DType.I64, (2,)),
    )


def _make_copy(weight: Weight, name: str, architecture: Architecture) -> Copy:
    target = TensorInfo(name, weight.dtype, weight.shape)
    is_tied = weight.role is Role.EMBEDDING and architecture.tied_embeddings
    saved = target.nbytes * _SAVED_TIED - target.shape[0] * _BYTES_OF_SCALE if is_tied else target.nbytes * _SAVED
    sizes = {"saved": size(saved), "after": size(target.nbytes - saved), "before": size(target.nbytes)}
    reason = (_TIED if is_tied else KEPT_BECAUSE[weight.role]).format(**sizes)
    if architecture.is_assistant and weight.linear and weight.role in {Role.ATTENTION, Role.MLP}:
        reason = DRAFTER_KEPT
    return Copy(target, weight.role, (weight.segment,), reason, channels_last=weight.channels_last)


def _fused_name(name: str) -> str:
    """Return the fused tensor's name: `...experts.gate_up_proj` for gate and up, `...experts.down_proj` for down."""
    module = Name(name)
    return f"{module.experts}.{'down_proj' if module.projection == 'down_proj' else 'gate_up_proj'}"


def _refuse_mixed_experts(fused: Mapping[str, list[Weight]]) -> None:
    """Raise if a layer's kept experts have several dtypes: they are fused into one tensor."""
    mixed = [name for name, weights in fused.items() if len({weight.dtype for weight in weights}) > 1]
    if mixed:
        raise InputError(
            "experts of one layer in several dtypes, which one tensor cannot have",
            offenders=mixed,
            hint="pack the experts, or save the model again in one dtype",
        )


def _fuse(name: str, weights: list[Weight]) -> Copy:
    """Return the step that fuses kept experts: [experts, 2 * intermediate, hidden], gate rows first, or down_proj."""
    places = [(Name(weight.name).expert or 0, Name(weight.name).projection == "up_proj") for weight in weights]
    order = [weight for _, weight in sorted(zip(places, weights, strict=True), key=itemgetter(0))]
    n, k = order[0].shape
    experts = len({expert for expert, _ in places})
    shape = (experts, n * len(order) // experts, k)
    segments = tuple(_join(weight.segment for weight in order))
    return Copy(TensorInfo(name, order[0].dtype, shape), Role.EXPERTS, segments, KEPT_BECAUSE[Role.EXPERTS])


def _join(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yield the ranges, with adjacent ranges of one source tensor joined."""
    joined: Segment | None = None
    for segment in segments:
        if joined and joined.source == segment.source and joined.end == segment.begin:
            joined = Segment(joined.source, joined.begin, segment.end)
        else:
            if joined:
                yield joined
            joined = segment
    if joined:
        yield joined


def _make_drop(extra: Extra, checkpoint: Checkpoint) -> Drop:
    constant = extra.kind.value if extra.kind in {ExtraKind.ONES, ExtraKind.ZEROS} else None
    must_equal = extra.twin if extra.kind is ExtraKind.TIED else constant
    return Drop(checkpoint.tensors[extra.source].info, extra.reason, must_equal)
