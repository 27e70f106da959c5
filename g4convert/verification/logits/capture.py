"""Stored reference: one file with all that is needed to judge candidates without the original model.

    g4convert reference MODEL -o ref.safetensors        52 GB become about 200 MB for 8192 tokens

The file is safetensors. For each probe N, in order:

    N.arguments...                  tensors of the forward call, for running candidates
    N.response bool [b, t], N.targets int64 [n]
    N.logits, N.raw_logits          float32 [n, V], if the vocabulary is at most 4096; else
    N.top.ids int32 [n, 1024], N.top.logprobs [n, 1024], N.top.log_sum_exp [n], N.top.target_logprob [n]
    N.layers.*, N.embedders.*       float32 [t, 64], random projections; N.routers.* int32 [t, k]
    projection.H                    float32 [H, 64], the projection of states of width H

The metadata has, under one key, the version of the metrics, the probes' names, buckets and nested arguments, the
digest of the source checkpoint, its config and hashes of its files (`static.stored_reference`), and the versions of the
programs. With full logits all metrics but the SQNR are exact; the SQNR is estimated. With the 1,024 likeliest tokens
the KL is a lower bound (see `scores.score_top`), and differences of logits are those of the known tokens.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from g4convert import __version__
from g4convert.checkpoint.files import parse_object
from g4convert.checkpoint.header import read_header
from g4convert.errors import FormatError, InputError
from g4convert.forward.candidate import ModelCandidate, ProbeOutputs, run_all
from g4convert.forward.logits import HeldLogits
from g4convert.forward.models import Config
from g4convert.forward.probe import Probe
from g4convert.progress import Progress
from g4convert.verification.logits.intact import DIGEST, MOST_PROBES, digest, faults_of, misfits
from g4convert.verification.logits.kept import KeptProbe, LayerStates, Projection
from g4convert.verification.logits.scores import TopLogits
from g4convert.verification.profiles import METRICS_VERSION
from g4convert.whole_files import write_whole

TOP: Final = 1024
"""Number of likeliest tokens whose logits are kept of a larger vocabulary; fewer make the KL a looser bound."""
FULL_VOCABULARY: Final = 4096
"""Largest vocabulary whose logits are all kept."""

_FACTS: Final = "g4convert_reference"
"""Only key of the metadata, with JSON as value: with several keys their order, and so the bytes, would be random."""
_AGAIN: Final = "make one with `g4convert reference MODEL -o FILE`"
_STATES: Final = ("layers", "embedders", "routers")


@dataclass(frozen=True, slots=True)
class StoredReference:
    """A reference that was read from a file, or has just been written to it.

    Args:
        probes: probes that the reference was run on.
        kept: outputs of each probe, by name.
        projection: projection of the hidden states.
        facts: metadata: `source` (digest), config and hashes of files of the source, `dtype`, versions.
    """

    probes: tuple[Probe, ...]
    kept: Mapping[str, KeptProbe]
    projection: Projection
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file that `capture` wrote; logits stay in the file until they are used.

        Raises:
            InputError: the file does not exist, is no stored reference, or has another version of the metrics.
            FormatError: the file is damaged, or its tensors do not fit its probes.
        """
        try:
            read_header(path.parent, path.name)  # stricter than the library
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = file.keys() if _FACTS in metadata else ()
                tensors = {name: file.get_tensor(name) for name in names}
        except InputError as error:
            raise InputError(f"{path}: cannot be read as a stored reference: {error.message}", hint=_AGAIN) from error
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as a stored reference: {error}", hint=_AGAIN) from error
        if _FACTS not in metadata:
            is_weights = (path.parent / "config.json").is_file()
            hint = f"pass the directory {path.parent}" if is_weights else _AGAIN
            raise InputError(f"{path}: not a stored reference", hint=hint)
        facts = parse_object(metadata[_FACTS].encode(), f"{path}: its metadata", _AGAIN)
        if facts.get("metrics_version") != METRICS_VERSION:
            text = f"metrics version {facts.get('metrics_version')!s:.20}, expected {METRICS_VERSION}"
            raise InputError(f"{path}: {text}", hint="store the reference again with this version")
        if facts.pop(DIGEST, None) != digest(facts, tensors):
            raise FormatError(f"{path}: damaged: its content has another digest than it says", hint=_AGAIN)
        return cls._of(path, facts, tensors)

    @classmethod
    def _of(cls, path: Path, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        probes: list[Probe] = []
        kept: dict[str, KeptProbe] = {}
        wrong: list[str] = []
        try:
            for number, (name, bucket, arguments) in enumerate(facts["probes"][:MOST_PROBES]):
                mine = _select(tensors, str(number))
                probe = Probe(str(name), str(bucket), _decode(arguments, tensors), mine["response"], mine["targets"])
                kept[probe.name] = _probe_of(mine)
                wrong += (f"{number}.{fault}" for fault in faults_of(probe, kept[probe.name]))
                probes.append(probe)
            matrices = {int(width): matrix for width, matrix in _select(tensors, "projection").items()}
        except KeyError as error:
            raise FormatError(f"{path}: a stored reference without {error}", hint=_AGAIN) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path}: a stored reference of another form ({error})", hint=_AGAIN) from error
        if len(facts["probes"]) != len(kept) or not kept:
            wrong.append(f"{len(facts['probes'])} probes, {len(kept)} of them with a name of their own")
        wrong += (
            f"projection.{width}: {[*matrix.shape]}, expected [{width}, n]"
            for width, matrix in matrices.items()
            if matrix.ndim != 2 or len(matrix) != width or matrix.dtype is not torch.float32
        )
        if wrong:
            text = f"{path}: a stored reference whose tensors are of other shapes than its probes need"
            raise FormatError(text, offenders=wrong, hint=_AGAIN)
        other_facts = {key: value for key, value in facts.items() if key != "probes"}
        return cls(tuple(probes), kept, Projection(matrices=matrices), other_facts)

    def check_fits(self, path: Path, config: Config) -> None:
        """Raise if the reference cannot be of the model that is judged.

        Raises:
            InputError: tokens or layers of the reference do not fit the model.
        """
        if wrong := [*misfits(self.probes, self.kept, config)]:
            hint = "pass the reference of the checkpoint that the output was made of"
            raise InputError(f"{path}: a stored reference of another model", offenders=wrong, hint=hint)


def capture(  # noqa: PLR0913 -- a model, what to ask, where to store, and who is told
    candidate: ModelCandidate,
    probes: Sequence[Probe],
    path: Path,
    *,
    source: str,
    facts: Mapping[str, Any],
    overwrite: bool,
    check: Callable[[], None],
    progress: Progress,
) -> StoredReference:
    """Run a reference on probes, and store its outputs.

    Args:
        candidate: the reference.
        probes: probes with the answers to score.
        path: path of the file.
        source: digest of the checkpoint, `Checkpoint.digest()`.
        facts: further entries of the metadata.
        overwrite: replace a file that is there when all is written.
        check: raises if the file may not be written, now that the reference has run.
        progress: told of finished tokens.

    Returns:
        The stored reference.

    Raises:
        UsageError: a file is there that may not be replaced.
    """
    projection = Projection()
    progress.step("running the model", sum(probe.response.numel() for probe in probes), "")

    def keep(probe: Probe, outputs: ProbeOutputs) -> KeptProbe:
        progress.tick(probe.response.numel())
        top = 0 if outputs.rows.width <= FULL_VOCABULARY else TOP
        kept = KeptProbe.of(probe, outputs, projection=projection, top=top)
        return kept if top else replace(kept, logits=HeldLogits(outputs.logits.clone(), outputs.raw_logits))

    kept = run_all(candidate, probes, keep)
    check()
    versions = {
        "metrics_version": METRICS_VERSION,
        "source": source,
        "g4convert": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
    by_name = {probe.name: outputs for probe, outputs in zip(probes, kept, strict=True)}
    captured = StoredReference(tuple(probes), by_name, projection, {**versions, **facts})
    _save(captured, path, overwrite=overwrite)
    return captured


def _save(captured: StoredReference, path: Path, *, overwrite: bool) -> None:
    """Write a stored reference."""
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for number, probe in enumerate(captured.probes):
        described.append((probe.name, probe.bucket, _encode(probe.arguments, f"{number}.arguments", tensors)))
        outputs = _tensors_of(probe, captured.kept[probe.name])
        tensors |= {f"{number}.{key}": value for key, value in outputs.items()}
    tensors |= {f"projection.{width}": matrix for width, matrix in captured.projection.matrices.items()}
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    facts = json.loads(json.dumps({**captured.facts, "probes": described}))
    metadata = {_FACTS: json.dumps(facts | {DIGEST: digest(facts, contiguous)})}
    content = save(contiguous, metadata=metadata)  # save_file would make the file readable by its owner only
    write_whole(path, content, overwrite=overwrite)


def _tensors_of(probe: Probe, kept: KeptProbe) -> dict[str, torch.Tensor]:
    """Return the tensors of one probe and its outputs by name, without the arguments."""
    tensors = {"response": probe.response, "targets": probe.targets}
    match kept.logits:
        case HeldLogits(after, before):
            tensors["logits"] = after
            if before is not None:
                tensors["raw_logits"] = before
        case TopLogits():
            tensors |= {f"top.{part.name}": getattr(kept.logits, part.name) for part in fields(TopLogits)}
            tensors["top.ids"] = kept.logits.ids.int()
    for kind in _STATES:
        tensors |= {f"{kind}.{name}": value for name, value in getattr(kept.states, kind).items()}
    return tensors | {name: value.int() for name, value in tensors.items() if name.startswith("routers.")}


def _probe_of(tensors: Mapping[str, torch.Tensor]) -> KeptProbe:
    """Return the outputs of a probe from the tensors that `_tensors_of` returned."""
    layers, embedders, routers = (_select(tensors, kind) for kind in _STATES)
    states = LayerStates(layers, embedders, {name: chosen.long() for name, chosen in routers.items()})
    if "logits" in tensors:
        return KeptProbe(HeldLogits(tensors["logits"], tensors.get("raw_logits")), states)
    top = {part.name: tensors[f"top.{part.name}"] for part in fields(TopLogits)}
    return KeptProbe(TopLogits(**top | {"ids": top["ids"].long()}), states)


def _select(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors under a prefix, by the rest of the name; layer 10 comes after layer 9, unlike in the file."""
    start = f"{prefix}."
    names = [name.removeprefix(start) for name in tensors if name.startswith(start)]
    return {name: tensors[start + name] for name in sorted(names, key=_split_numbers)}


def _split_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401 -- arguments of a forward
    """Return nested arguments as JSON; tensors are added to `tensors` under their names."""
    match value:
        case torch.Tensor():
            tensors[name] = value
            return {"tensor": name}
        case Mapping():
            return {"mapping": {key: _encode(item, f"{name}.{key}", tensors) for key, item in value.items()}}
        case tuple() | list():
            items = [_encode(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        case _:
            return {"value": value}


def _decode(value: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401
    """Return the arguments that `_encode` encoded."""
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "mapping":
            return {key: _decode(item, tensors) for key, item in content.items()}
        case "tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "list":
            return [_decode(item, tensors) for item in content]
        case _:
            return content
