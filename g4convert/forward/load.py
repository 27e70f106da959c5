"""Loads a checkpoint into its transformers model, strictly, and without making a tensor twice.

    config.json --> model on meta --> packed modules --> every tensor from the files
                                                         or hooks that load a part when it runs (streaming)

transformers' own loader initialises what it does not find at random and drops what it does not know. Here names
are resolved first, by the tables that a conversion uses, so any dialect loads, plain or packed, and whatever does
not fit is an error that lists all of it. What no checkpoint stores, the rotary tables and the like, is computed by
the model's own initialisation in the dtype in which `from_pretrained(dtype=...)` has it; `model.to(bfloat16)` would
round them and change logits. For plain checkpoints the result is `from_pretrained`'s, bit for bit.

A tensor that needs no cast stays the mapped file: a bf16 model of a bf16 checkpoint takes no memory of its own.
"""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
import transformers

from g4convert.checkpoint.contents import Contents
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import SAVE_AGAIN, parse_object, read_whole
from g4convert.checkpoint.stored import PackedModule
from g4convert.devices import CPU, device_of, is_roomy, record_device
from g4convert.engines import CONTRACTS
from g4convert.forward.experts import IMPLEMENTATION, PackedProjection, make_packed
from g4convert.forward.filling import Filling, put
from g4convert.forward.misfits import Misfit, MisfitKind, Unfit
from g4convert.forward.models import Config, Model, constructing, model_class, quiet_transformers, read_config, reading
from g4convert.forward.modules import W4A16Linear
from g4convert.forward.pieces import Constant, Dense, PackedGroup, Piece, Rows, TensorFiles
from g4convert.forward.resolving import pieces_of
from g4convert.forward.streaming import Stream
from g4convert.forward.tables import PackedTable
from g4convert.gemma4 import Architecture, ExtraKind, Role, droppable
from g4convert.gemma4.architecture import TEXT_ONLY, WITHOUT_PARTS
from g4convert.gemma4.matching import match_names
from g4convert.names import Name
from g4convert.quantization.torch_tiles import TORCH_DTYPES
from g4convert.suggestions import no_such
from g4convert.tensors import DType, TensorInfo

DTypeName: TypeAlias = Literal["float32", "bfloat16", "float16"]
Memory: TypeAlias = Literal["resident", "stream", "auto"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEAD = "lm_head.weight"
_GENERATION = "generation_config.json"
_ROWS = 1 << 13  # of a table, compared at once


def load(  # noqa: PLR0913 -- what is loaded, and five ways to
    source: str | os.PathLike[str] | Checkpoint,
    *,
    dtype: DTypeName = "float32",
    packed: bool = True,
    memory: Memory = "resident",
    device: torch.device = CPU,
    decoder_only: bool = False,
    beside: Model | None = None,
) -> Model:
    """Load a checkpoint, plain or packed, in any dialect that a conversion reads.

    Args:
        source: the checkpoint: its directory, or as it is open.
        dtype: dtype of the model; packed scales keep theirs.
        packed: whether packed weights stay packed words, run by `W4A16Linear` and the experts implementation
            `g4_w4a16`; False dequantizes them, in `dtype`. Without effect on plain weights.
        memory: `resident` holds every tensor; `stream` the decoder layers and towers only while they run, one at
            a time; `auto` takes what the free memory allows.
        device: device that runs it; see `devices.torch_device`. The files are read on the CPU, a tensor at a time.
        decoder_only: True to load the text model alone, as `Gemma4ForCausalLM`, whether towers are there or not.
        beside: a model that is loaded already; a resident one shares with it what both files hold in the same bytes.

    Returns:
        The model, in eval mode; with `memory="stream"` see `streaming.run_together`.

    Raises:
        GateError: a tensor is missing, unknown, twice there, of another shape or form, or a dropped one has values
            that matter; names all of them.
        InputError: the directory is not a Gemma 4 checkpoint.
        UsageError: not such a dtype or memory.
    """
    if dtype not in DTYPES:
        raise no_such("dtype", dtype, DTYPES)
    if memory not in get_args(Memory):
        raise no_such("memory", memory, get_args(Memory))
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    architecture = Architecture.from_config(checkpoint.config)
    infos = checkpoint.infos
    if decoder_only and architecture.text_types:
        infos = _decoder_infos(infos, architecture) if architecture.is_composite else infos
        architecture = architecture.text_only()
    contents = Contents.of(infos, architecture, tied_both_ways=True)
    problems = [*_unplaced(contents)]
    sources = pieces_of(checkpoint, contents, problems)
    problems += _wrong_extras(checkpoint, contents)
    _refuse(checkpoint.path, problems)
    model = _empty_model(checkpoint.path, architecture, DTYPES[dtype], device)
    pieces = {**_place(model, sources, packed=packed), **_infinite_limits(model, contents)}
    tied = {_HEAD} if architecture.tied_embeddings else set()
    places = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    _refuse(checkpoint.path, _misfits(pieces, places))
    filling = Filling(checkpoint, pieces, places, device)
    if memory == "stream" or (memory == "auto" and not is_roomy(filling.nbytes, device)):
        Stream.attach(model, filling, tied=bool(tied))
        _set_device(model)
    else:
        filling.fill(model, pieces, beside=beside)
        if tied:
            model.tie_weights()
    return model.eval()


def _set_device(model: Model) -> None:
    """Let `model.device` be where inputs go: transformers reads it off a parameter, and a streamed one is on meta."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "device": property(device_of)})


def _refuse(path: Path, problems: list[Misfit]) -> None:
    if problems:
        raise Unfit(path, problems)


def _decoder_infos(infos: Mapping[str, TensorInfo], architecture: Architecture) -> dict[str, TensorInfo]:
    """Return the tensors of a multimodal checkpoint that are not known as a tower's or an embedder's."""
    match = match_names(infos, architecture)
    media = {
        source for name, sources in match.sources.items() if architecture.text_name(name) is None for source in sources
    }
    return {name: info for name, info in infos.items() if name not in media}


def _infinite_limits(model: Model, contents: Contents) -> dict[str, Piece]:
    """Return infinite limits for clip buffers of towers that the checkpoint lacks, as transformers starts with."""
    spelled = CONTRACTS["transformers"].speller(contents.architecture) if contents.architecture.is_unified else str
    places = model.state_dict()
    return {
        spelled(name): Constant(-math.inf if name.endswith("_min") else math.inf, DType.F32)
        for name, expected in contents.expected.items()
        if expected.role is Role.CLIP and name not in contents.stored and spelled(name) in places
    }


def _unplaced(contents: Contents) -> Iterable[Misfit]:
    """Yield the pieces that have no place in the model, and the places that have two sources."""
    yield from (Misfit(MisfitKind.UNEXPECTED, name) for name in contents.unknown)
    yield from (
        Misfit(MisfitKind.TORN, module, f"no weight_packed beside {', '.join(parts)}")
        for module, parts in contents.torn.items()
    )
    yield from (Misfit(MisfitKind.TWICE, name, " and ".join(names)) for name, names in contents.twice.items())


def _wrong_extras(checkpoint: Checkpoint, contents: Contents) -> Iterable[Misfit]:
    """Yield tensors that no model has a place for, but whose values matter."""
    files = TensorFiles(checkpoint)
    droppable_names = droppable(contents.architecture)
    for name, form in contents.spare.items():
        if isinstance(form, PackedModule):
            yield Misfit(MisfitKind.UNEXPECTED, name, "packed, and no model reads it")
            continue
        match droppable_names.get(contents.renamed.get(name, name)):
            case None:
                continue  # a derived buffer
            case extra if form.shape != extra.shape:
                yield Misfit(MisfitKind.MISMATCHED, name, f"is {[*form.shape]}, expected {[*extra.shape]}")
            case extra if extra.kind is ExtraKind.ONES and not bool((files[name] == 1).all()):
                yield Misfit(MisfitKind.UNEXPECTED, name, f"has values other than 1, but {extra.reason}")
            case extra if extra.kind is ExtraKind.ZEROS and bool(files[name].any()):
                yield Misfit(MisfitKind.UNEXPECTED, name, f"has values other than 0, but {extra.reason}")
            case extra if extra.kind is ExtraKind.TIED and not _is_embedding(contents, files, files[name]):
                yield Misfit(MisfitKind.UNEXPECTED, name, f"differs from the embedding, but {extra.reason}")


def _is_embedding(contents: Contents, files: TensorFiles, head: torch.Tensor) -> bool:
    embedding = contents.plain(f"{contents.architecture.text_prefix}embed_tokens.weight")
    if embedding is None:
        return False
    table = files[embedding.name]
    if table.dtype is head.dtype:
        return torch.equal(table, head)
    blocks = ((table[row : row + _ROWS], head[row : row + _ROWS]) for row in range(0, len(head), _ROWS))
    return all(torch.equal(one.float(), other.float()) for one, other in blocks)


def _empty_model(path: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device) -> Model:
    """Return the model on meta; only buffers that no checkpoint stores have memory and values, those of the CPU."""
    config = read_config(path)
    with quiet_transformers():
        if architecture.model_type != config.model_type:
            config = _text_only(config.get_text_config())
            config.tie_word_embeddings = architecture.tied_embeddings
        for section in (config, config.get_text_config()):
            if hasattr(section, "quantization_config"):
                del section.quantization_config  # transformers would build its own packed modules
        with constructing(config.model_type), torch.device("meta"):
            model = model_class(config.model_type)._from_config(config, dtype=dtype)  # noqa: SLF001 -- as AutoModel does
        for name, buffer in list(model.named_non_persistent_buffers()):
            put(model, name, torch.empty_like(buffer, device="cpu"))
        for parameter in model.parameters():
            vars(parameter)["_is_hf_initialized"] = True  # on meta, where drawing numbers takes time all the same
        model.initialize_weights()
        for name, buffer in list(model.named_non_persistent_buffers()):
            put(model, name, buffer.to(device))
    if (path / _GENERATION).exists() and hasattr(model, "generation_config"):
        values = parse_object(read_whole(path, _GENERATION), _GENERATION, SAVE_AGAIN)
        with reading(f"{path}: {_GENERATION}", SAVE_AGAIN):
            model.generation_config = transformers.GenerationConfig.from_dict(values)
    record_device(model, device)
    return model


def _text_only(config: Config) -> Config:
    """Return a decoder's config for `Gemma4ForCausalLM`, whose layers take the same arguments in every decoder."""
    if config.model_type == TEXT_ONLY:
        return config
    return transformers.AutoConfig.for_model(**config.to_dict() | {"model_type": TEXT_ONLY, **WITHOUT_PARTS})


def _place(model: Model, sources: Mapping[str, Rows | PackedGroup], *, packed: bool) -> dict[str, Piece]:
    """Return the pieces by name in the model; replace the modules whose weights stay packed."""
    pieces: dict[str, Piece] = {}
    experts: dict[str, dict[str, PackedGroup]] = {}
    for name, source in sources.items():
        module, leaf = str(Name(name).owner), Name(name).last
        if isinstance(source, Rows):
            pieces[name] = source
        elif not packed:
            pieces[name] = Dense(source)
        elif len(source.shape) == 3:
            experts.setdefault(module, {})[leaf.removesuffix("_proj")] = source
        else:
            pieces |= _pack(model, module, source)
    for module, groups in experts.items():
        make_packed(model.get_submodule(module), {name: _projection(group) for name, group in groups.items()})
        for name, group in groups.items():
            pieces |= {f"{module}.{name}_{part}": rows for part, rows in group.parts}
    if experts:
        model.set_experts_implementation(IMPLEMENTATION)
    return pieces


def _pack(model: Model, module: str, group: PackedGroup) -> dict[str, Piece]:
    plain, parts = model.get_submodule(module), dict(group.parts)
    dtype, symmetric = TORCH_DTYPES[parts["scale"].dtype], "zero_point" not in parts
    replacement: torch.nn.Module
    if isinstance(plain, torch.nn.Linear):
        replacement = W4A16Linear(
            plain, num_bits=group.num_bits, groups=group.groups, scale_dtype=dtype, symmetric=symmetric
        )
    elif isinstance(plain, torch.nn.Embedding) and symmetric and not _is_head(model, plain):
        replacement = PackedTable(plain, num_bits=group.num_bits, groups=group.groups, scale_dtype=dtype)
    else:
        return {f"{module}.weight_{part}": rows for part, rows in parts.items()}  # reported as unexpected
    model.set_submodule(module, replacement)
    return {f"{module}.weight_{part}": rows for part, rows in parts.items()}


def _is_head(model: Model, table: torch.nn.Embedding) -> bool:
    """Return True if a table is the tied head's weight, too, which no packed one can be."""
    tied: bool = model.config.get_text_config().tie_word_embeddings
    return tied and table is model.get_input_embeddings()


def _projection(group: PackedGroup) -> PackedProjection:
    parts = dict(group.parts)
    return PackedProjection(
        words=parts["packed"].shape,
        scale=parts["scale"].shape,
        scale_dtype=TORCH_DTYPES[parts["scale"].dtype],
        zero_point=parts["zero_point"].shape if "zero_point" in parts else None,
        num_bits=group.num_bits,
    )


def _misfits(pieces: Mapping[str, Piece], places: Mapping[str, torch.Tensor]) -> list[Misfit]:
    """List the differences of checkpoint and built model; the tables of names say there are none."""
    problems = [Misfit(MisfitKind.MISSING, name) for name in places if name not in pieces]
    problems += [Misfit(MisfitKind.UNEXPECTED, name) for name in pieces if name not in places]
    for name, piece in pieces.items():
        if name in places and tuple(piece.shape) != tuple(places[name].shape):
            text = f"is {[*piece.shape]}, the model's is {[*places[name].shape]}"
            problems.append(Misfit(MisfitKind.MISMATCHED, name, text))
    return problems
