"""Statistics of what the Linears of a model are given: the mean square of each input, and on how many tokens.

A calibration file is safetensors. Beside the token ids it has, for every module that is the first to take some inputs
(`layers.3.self_attn.q_proj`; k and v take the same), two tensors:

    MODULE.mean_square    float32 [k], of the experts of a layer [e, k]
    MODULE.tokens         int64 [1], or [e]

An expert that few tokens were routed to borrows from all experts of its layer: their mean counts as much as 32 tokens.
One without tokens has that mean alone.

Letters: k inputs, e experts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.fingerprint import sampled
from g4convert.errors import InputError
from g4convert.names import Name

__all__ = ["FEW", "Inputs", "Model", "Statistics", "source_of"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

FEW: Final = 32
"""Tokens that the mean of all experts of a layer counts for."""

_VERSION: Final = "1"
_SQUARES, _TOKENS = ".mean_square", ".tokens"
_SHARED: Final = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Projections that take the inputs of another."""
_NOT_OF_A_MODEL: Final = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version"})
_HINT: Final = "`quantize MODEL -o OUT -r w4a16-g32-imatrix`, without --calibration, keeps one beside OUT"


def source_of(path: str) -> str:
    """The module whose inputs a Linear takes.

    Args:
        path: of the Linear in the decoder, such as `layers.3.mlp.up_proj` or `layers.3.experts.7.down_proj`.

    Returns:
        `layers.3.mlp.gate_proj`, `layers.3.experts.down_proj`.
    """
    owner, _, projection = path.rpartition(".")
    one = Name(path)
    if one.expert is not None:
        owner = one.experts
    first = _SHARED.get(projection, projection)
    return f"{owner}.{first}" if owner else first


@dataclass(frozen=True, slots=True)
class Model:
    """Identity of a model: two with the same compute the same.

    Args:
        config: sha256 of config.json, without what a library notes in it.
        tokenizer: sha256 of tokenizer.json; empty without one.
        weights: a hash over the middle of every tensor.
    """

    config: str
    tokenizer: str
    weights: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Model":
        """The identity of an opened checkpoint."""
        config = {key: value for key, value in checkpoint.config.items() if key not in _NOT_OF_A_MODEL}
        tokenizer = checkpoint.path / "tokenizer.json"
        with Reader(checkpoint.path, checkpoint.weight_files) as reader:
            weights = sampled(checkpoint, reader)
        return cls(
            sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else "",
            weights,
        )

    def differences(self, other: "Model") -> Iterator[str]:
        """Parts that another model has not in common, in words."""
        for part, name in (("config", "config.json"), ("tokenizer", "tokenizer.json"), ("weights", "weights")):
            if getattr(self, part) != getattr(other, part):
                yield f"another {name}" if part != "weights" else "other weights"

    def to_dict(self) -> dict[str, str]:
        """The identity as JSON."""
        return {"config": self.config, "tokenizer": self.tokenizer, "weights": self.weights}


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one module, or of the experts of a layer.

    Args:
        mean_square: E[x^2], float32 [k] or [e, k]; zeros where no token was seen.
        tokens: int64 [1] or [e].
    """

    mean_square: F32
    tokens: I64

    def of_expert(self, expert: int) -> F32:
        """E[x^2] of one expert, [k]: its own and, counting as 32 tokens, that of all experts."""
        own, share = self.mean_square[expert].astype(np.float64), float(self.tokens[expert])
        whole = max(int(self.tokens.sum()), 1)
        prior = (self.tokens[:, None] * self.mean_square.astype(np.float64)).sum(axis=0) / whole
        blended: F32 = ((share * own + FEW * prior) / (share + FEW)).astype(np.float32)
        return blended


@dataclass(frozen=True, slots=True)
class Statistics:
    """Inputs of a model's Linears.

    Args:
        inputs: by the first module that takes them.
        model: the model that was run; None where a file does not say.
        origin: what counted: `g4convert` or `llama.cpp`.
        tokens: sha256 of the token ids; empty where a file has none.
        samples: sequences of token ids; 0 where a file has none.
        length: tokens of each.
    """

    inputs: Mapping[str, Inputs]
    model: Model | None
    origin: str = "g4convert"
    tokens: str = ""
    samples: int = 0
    length: int = 0

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read a calibration file.

        Raises:
            InputError: not such a file, damaged, of a later version, or with token ids alone.
        """
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                names = [*file.keys()]
                arrays = {name: file.get_tensor(name) for name in names if name != "ids"}
                ids = file.get_tensor("ids") if "ids" in names else np.zeros((0, 0), np.int32)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a calibration file: {error}", hint=_HINT) from error
        if not arrays or "statistics" not in metadata:
            raise InputError(f"{path}: token ids without statistics of the model's inputs", hint=_HINT)
        if metadata.get("version") != _VERSION:
            found = metadata.get("version")
            raise InputError(f"{path}: version {found} of a calibration file, expected {_VERSION}", hint=_HINT)
        if metadata["statistics"] != _hash(arrays) or metadata.get("sha256") != _hash_of_ids(ids):
            raise InputError(f"{path}: its tensors do not have the hashes it states: damaged", hint=_HINT)
        try:
            model = Model(**json.loads(metadata["model"]))
            inputs = dict(_inputs(arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: statistics of another form: {error}", hint=_HINT) from error
        return cls(inputs, model, "g4convert", _hash_of_ids(ids), *ids.shape)

    @staticmethod
    def are_in(path: Path) -> bool:
        """True if a calibration file has statistics beside its token ids.

        Raises:
            InputError: not such a file.
        """
        try:
            with safe_open(path, "np") as file:
                return "statistics" in (file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a calibration file: {error}", hint=_HINT) from error

    def save(self, path: Path, ids: NDArray[np.int32], metadata: Mapping[str, str] | None = None) -> None:
        """Write a calibration file, in the place of one that is there.

        Args:
            path: the file; it is replaced when all is written.
            ids: token ids that were run, int32 [samples, length].
            metadata: more that is known of them.
        """
        arrays = self._arrays()
        facts = {
            **(metadata or {}),
            "version": _VERSION,
            "sha256": _hash_of_ids(ids),
            "statistics": _hash(arrays),
            "model": json.dumps(self.model.to_dict() if self.model else {}),
        }
        partial = path.with_name(f"{path.name}.writing")  # a kill leaves the old file or the new one, never a part
        save_file({"ids": ids, **arrays}, partial, metadata=facts)
        partial.replace(path)

    def of(self, path: str) -> F32:
        """E[x^2] of a Linear's inputs, float32 [k].

        Args:
            path: of the Linear in the decoder, such as `layers.3.mlp.up_proj`.

        Raises:
            KeyError: nothing is known of it.
        """
        found, expert = self.inputs[source_of(path)], Name(path).expert
        return found.mean_square if expert is None else found.of_expert(expert)

    @property
    def hash(self) -> str:
        """The hash over everything that shows in a conversion."""
        return _hash(self._arrays())

    def experts_with(self, most: int) -> list[str]:
        """Experts that so many tokens or fewer were routed to, as `layers.0.experts.3`."""
        return [
            f"{name.removesuffix('.gate_proj')}.{expert}"
            for name, inputs in self.inputs.items()
            if name.endswith("experts.gate_proj")
            for expert in np.flatnonzero(inputs.tokens <= most)
        ]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for name in sorted(self.inputs):
            found[name + _SQUARES], found[name + _TOKENS] = self.inputs[name].mean_square, self.inputs[name].tokens
        return found


def _inputs(arrays: Mapping[str, NDArray[Any]]) -> Iterable[tuple[str, Inputs]]:
    """Pairs of tensors by module.

    Raises:
        ValueError: a tensor of another dtype or shape, alone, or with a number that cannot be.
    """
    modules = sorted({name.removesuffix(_SQUARES).removesuffix(_TOKENS) for name in arrays})
    for module in modules:
        squares, tokens = arrays.get(module + _SQUARES), arrays.get(module + _TOKENS)
        if squares is None or tokens is None or squares.dtype != np.float32 or tokens.dtype != np.int64:
            raise ValueError(module)
        if tokens.shape != (squares.shape[:-1] or (1,)) or not np.isfinite(squares).all() or squares.min() < 0:
            raise ValueError(module)
        yield module, Inputs(squares, tokens)


def _hash_of_ids(ids: NDArray[np.int32]) -> str:
    return sha256(ids.astype("<i4").tobytes()).hexdigest()


def _hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
