"""Identity of a model, stored in calibration files so that they are used only with the model they were made for.

Models with the same config, tokenizer and weights are the same. Weights are compared by a sample, since the check runs
before every conversion; see `fingerprint.sample_weights`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.fingerprint import sample_weights
from g4convert.gemma4 import Architecture

_NOT_OF_A_MODEL: Final = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version"})
_DIGITS: Final = 12
"""Digits of a hash in a message."""


@dataclass(frozen=True, slots=True)
class Model:
    """Identity of a model.

    Args:
        dims: sizes of the decoder, by their names in config.json.
        config: sha256 of config.json, without the keys that libraries add when they save it.
        tokenizer: sha256 of tokenizer.json; empty without one.
        weights: a hash over the middle of every tensor.
    """

    dims: Mapping[str, int]
    config: str
    tokenizer: str
    weights: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Model":
        """Return the identity of an opened checkpoint."""
        config = {key: value for key, value in checkpoint.config.items() if key not in _NOT_OF_A_MODEL}
        with Reader(checkpoint.path, checkpoint.weight_files) as reader:
            weights = sample_weights(checkpoint, reader)
        return cls(
            _dims(Architecture.from_config(checkpoint.config)),
            sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            tokenizer_hash(checkpoint.path),
            weights,
        )

    @classmethod
    def from_json(cls, text: str) -> "Model":
        """Parse the output of `to_json`.

        Raises:
            ValueError: `text` has another form.
        """
        identity = json.loads(text)
        texts = ("config", "tokenizer", "weights")
        if not isinstance(identity, dict) or identity.keys() != {"dims", *texts}:
            raise ValueError("identity of a model")
        dims = identity["dims"]
        valid = isinstance(dims, dict) and all(isinstance(size, int) for size in dims.values())
        if not valid or not all(isinstance(identity[key], str) for key in texts):
            raise ValueError("identity of a model")
        return cls(**identity)

    def to_json(self) -> str:
        """Return the identity as JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the identity as a JSON object."""
        return {**asdict(self), "dims": dict(self.dims)}

    def differences(self, other: "Model") -> Iterator[str]:
        """Yield the differences from `other`, own value first; config and weights only if all sizes are equal."""
        sizes = [
            f"{key}: {self.dims.get(key)}, expected {other.dims.get(key)}"
            for key in {**self.dims, **other.dims}
            if self.dims.get(key) != other.dims.get(key)
        ]
        yield from sizes
        for key, name in (("config", "config.json"), ("tokenizer", "tokenizer.json"), ("weights", "weights")):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs and not (sizes and key != "tokenizer"):
                yield f"{name}: {_describe_hash(mine)}, expected {_describe_hash(theirs)}"


def hash_of_request(request: Mapping[str, Any]) -> str:
    """Return a sha256 over all that a file depends on, and this version: equal hashes mean equal files.

    Args:
        request: what the file is made of, as JSON values.
    """
    return sha256(json.dumps({**request, "g4convert": __version__}, sort_keys=True).encode()).hexdigest()


def _describe_hash(digest: str) -> str:
    return f"hash {digest[:_DIGITS]}" if digest else "none"


def _dims(architecture: Architecture) -> dict[str, int]:
    text = architecture.text
    return {
        "num_hidden_layers": len(text.layers),
        "hidden_size": text.hidden_size,
        "num_experts": text.experts.count if text.experts else 0,
        "vocab_size": text.vocab_size,
    }


def tokenizer_hash(directory: Path) -> str:
    """Return the sha256 of a checkpoint's tokenizer.json; empty if the file is missing."""
    path = directory / "tokenizer.json"
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
