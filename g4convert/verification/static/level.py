"""Level `static`: compares an output with its source and its own config, from names, shapes and files alone.

    files      headers, index, sizes            Checkpoint.open refuses what cannot be read
    config     the source's keys, architecture, quantization section
    tensors    each stored once; kept tensors with their dtype and shape
    packing    words, scales and shapes by the scheme
    engines    `targets` and `ignore` under each engine's names and rules
    side files byte for byte

No weight is read, no torch imported. A check that finds nothing wrong yields a PASS that says what was checked.
Findings about modules that differ in their numbers only are merged.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.record import record
from g4convert.checkpoint.shards import INDEX
from g4convert.checkpoint.uses import inventory_for
from g4convert.engines.refused_formats import refuse_other_formats
from g4convert.engines.stored import StoredCheckpoint
from g4convert.errors import InputError, UnsupportedError
from g4convert.gemma4 import Architecture, Inventory
from g4convert.quantities import plural
from g4convert.report import Finding, Severity, join_alike
from g4convert.verification.static.config import config_keys, has_head, model_class, read_architecture
from g4convert.verification.static.engines import dead_entries, wrong_forms
from g4convert.verification.static.files import broken_files, loose_files, total_size
from g4convert.verification.static.packing import fits_ranks, fused_experts, groups_of, other_schemes, packing
from g4convert.verification.static.section import cache_scheme, section_faults
from g4convert.verification.static.side_files import side_files
from g4convert.verification.static.tensors import (
    accounted,
    built_plain,
    dropped_tensors,
    kept_as_they_were,
    projections_agree,
    stray_scales,
    stray_values,
)

REQUIRED_ENGINES: Final = ("transformers", "vllm")
"""Engines whose faults fail a check unless told otherwise: config entries, keys and schemes that they read wrongly.

An engine that has no place for what is packed is not asked here: it refuses every such output, and `verdicts` says so.
"""

_BAD: Final = {Severity.FAIL, Severity.WARN, Severity.INCONCLUSIVE}


def open_output(output: Path) -> Checkpoint | tuple[Finding, ...]:
    """Open a quantized checkpoint, or return findings that say why its files cannot be opened.

    Raises:
        InputError: no such directory, or a file.
        UnsupportedError: weights in another file format, or stored otherwise than pack-quantized.
    """
    if output.is_file():
        hint = "the first argument is the directory of the output; a stored reference follows --reference"
        raise InputError(f"{output}: is a file", hint=hint)
    if not output.is_dir():
        raise InputError(f"{output}: no such directory", hint="pass the directory that `g4convert quantize` made")
    try:
        out = Checkpoint.open(output)
    except UnsupportedError:
        raise
    except InputError as error:
        return tuple(broken_files(error))
    refuse_other_formats(out)
    return out


def check_static(
    out: Checkpoint,
    original: Checkpoint | None,
    *,
    tp: Iterable[int] = (1, 2, 4),
    engines: Collection[str] = REQUIRED_ENGINES,
) -> Iterator[Finding]:
    """Check a quantized checkpoint without reading its weights.

    Args:
        out: the output.
        original: the source; None checks it against its own config.
        tp: numbers of GPUs (tensor parallel) to split the packed matrices over.
        engines: engines of `ENGINES` whose faults fail; a fault that only other engines have warns.

    Raises:
        InputError: the source is not a Gemma 4 checkpoint; or, without a source, the output is not.
        UnsupportedError: the source is quantized.
    """
    original_architecture = Architecture.from_config(original.config) if original else None
    architecture, differences = read_architecture(out.config, original_architecture, has_head=has_head(out.infos))
    stored = StoredCheckpoint.of(out, architecture)
    if original is None or original_architecture is None:
        yield from check_stored(stored, tp=tp, engines=engines)
        return
    yield from _check_files(out)
    yield from _compare_with_original(
        out,
        original,
        original_architecture,
        differences,
        text_only=architecture.model_type != original_architecture.model_type,
    )
    yield from _read(stored, inventory_for(architecture, original, original_architecture), tuple(tp), engines)
    text = "tokenizer, processor and all other files are byte for byte the source's"
    yield from _add_passes(
        {"static.side_files": (f"{len(original.side_files)} files", text)}, side_files(out, original)
    )


def check_stored(stored: StoredCheckpoint, *, tp: Iterable[int], engines: Collection[str]) -> Iterator[Finding]:
    """Check a quantized checkpoint against its own config; see `check_static`."""
    yield from _check_files(stored.checkpoint)
    yield from _read(stored, None, tuple(tp), engines)


def _add_passes(proofs: Mapping[str, tuple[str, str]], problems: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the problems, join_alike, and a PASS for each code of `proofs` (subject, text) without a problem."""
    faults = tuple(join_alike(problems))
    yield from faults
    bad = {one.code for one in faults if one.severity in _BAD}
    for code, (subject, text) in proofs.items():
        if code not in bad:
            yield Finding(code, Severity.PASS, subject, text, "")


def _check_files(out: Checkpoint) -> Iterator[Finding]:
    files = plural(len(out.files), "weight file")
    proofs = {
        "static.files": (files, "headers valid, offsets without gap or overlap, sizes as the headers say"),
        "static.stray": (files, "no other weights, adapters or settings of quantizers beside them"),
    }
    if (out.path / INDEX).is_file():
        proofs["static.index"] = INDEX, "index and shards name the same tensors"
        proofs["static.total_size"] = INDEX, "states the bytes of the tensors"
    yield from _add_passes(proofs, (*loose_files(out), *total_size(out)))


def _compare_with_original(
    out: Checkpoint,
    original: Checkpoint,
    original_architecture: Architecture,
    differences: Iterable[Finding],
    *,
    text_only: bool,
) -> Iterator[Finding]:
    """Compare the config of an output with its source's."""
    text = f"every key of the source is there, unchanged; {len(original.config)} at the top"
    keys = config_keys(out.config, original.config, text_only=text_only, has_head=has_head(out.infos))
    yield from _add_passes(
        {"static.architecture": ("config.json", f"{original_architecture.family}, as the source")}, differences
    )
    yield from _add_passes({"static.config": ("config.json", text)}, keys)


def _read(
    stored: StoredCheckpoint, inventory: Inventory | None, tp: tuple[int, ...], engines: Collection[str]
) -> Iterator[Finding]:
    """Check the tensors of an output by the source's inventory or, if that is None, by the output's config."""
    yield from _check_tensors(stored, inventory, engines)
    yield from _check_packed(stored, engines)
    yield from model_class(stored.checkpoint.config, stored.contents.architecture, engines)
    if stored.declared is not None and stored.declared.groups:
        yield from _check_engines(stored, engines)
    if stored.contents.is_packed:
        yield from fits_ranks(stored, tp)


def _check_tensors(
    stored: StoredCheckpoint, inventory: Inventory | None, engines: Collection[str]
) -> Iterator[Finding]:
    contents = stored.contents
    count = len(contents.stored)
    whole = f"{len(contents.packed)} packed, {count - len(contents.packed)} kept, none lost"
    against = "as in the source" if inventory else "as the config implies"
    weights = f"{count} weights"
    proofs = {
        "static.tensors": (weights, f"{whole}, {against}"),
        "static.duplicate": (weights, "each stored once"),
        "static.unknown": (weights, "nothing beside them"),
        "static.names": (weights, "under the names that loaders know"),
        "static.shape": (weights, "those kept have the model's shapes"),
        "static.dtype": (weights, f"those kept have dtypes {'as in the source' if inventory else 'of weights'}"),
        "static.kept": (weights, "router, embeddings, towers, embedders, norms and head are not packed"),
        "static.fused": (weights, "q, k and v, gate and up, all experts of a layer: in one form each"),
        "static.k_eq_v": (weights, "no v_proj where values are keys"),
        "static.kv_shared": (weights, "keys and values of KV-shared layers are like their queries, or absent"),
    }
    problems = (
        *accounted(contents, inventory),
        *kept_as_they_were(contents, inventory),
        *built_plain(contents, part(record(stored.checkpoint.path), "recipe")),
        *projections_agree(contents, engines),
        *(dropped_tensors(contents, inventory) if inventory else ()),
    )
    yield from _add_passes(proofs, problems)


def _check_packed(stored: StoredCheckpoint, engines: Collection[str]) -> Iterator[Finding]:
    out, contents, declared = stored.checkpoint, stored.contents, stored.declared
    faults = section_faults(out.config, stored.section, packs=contents.is_packed, engines=engines)
    modules = f"{len(contents.packed) + len(contents.fused_packed)} packed modules"
    proofs = {
        "static.quantization_config": ("config.json", "compressed-tensors, readable" if declared else "nothing packed"),
        "static.packed": (modules, "weight_packed is int32 [n, k*bits/32]"),
        "static.scale": (modules, "weight_scale is there, one for each group"),
        "static.weight_shape": (modules, "weight_shape is [n, k]"),
        "static.scheme": (modules, "bits, group size and strategy are those of config_groups"),
        "static.experts": (modules, "experts are stored one by one"),
    }
    problems = (
        *faults,
        *stray_values(contents),
        *stray_scales(contents, groups_of(stored)),
        *cache_scheme(out.config, contents.architecture),
        *packing(stored),
        *other_schemes(stored.weights, engines),
        *fused_experts(contents),
    )
    yield from _add_passes(proofs, problems)


def _check_engines(stored: StoredCheckpoint, engines: Collection[str]) -> Iterator[Finding]:
    modules = f"{len(stored.contents.packed)} packed modules"
    entries = f"{len(stored.weights.ignore)} entries of ignore"
    proofs = {
        "static.ignore": (modules, "exactly those that transformers, vLLM and SGLang would build packed"),
        "static.lm_head": ("lm_head", "ignored or not targeted"),
        "static.fused_names": (modules, "a missing k_proj or v_proj is named with its layer's others, or not at all"),
        "static.dead_entry": (entries, "each names a module"),
    }
    yield from _add_passes(proofs, (*wrong_forms(stored.weights, engines), *dead_entries(stored)))
