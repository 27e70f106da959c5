"""Prompts and the interface of an engine: tokens and media in, log-probabilities of prompt tokens out.

    Probe --prompts_of--> Prompt, one for each row, without padding --> Engine.score --> TopLogits

An engine does not pad, and shows neither logits nor hidden states: only the likeliest tokens at each place and the
true token's log-probability. A stored reference keeps logits in the same form, so the type is `TopLogits` here, too,
with a log-sum-exp of 0, since it is not known.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field

from g4convert.bounded import MOST_CONFIG, read_bytes
from g4convert.checkpoint.directory import CONFIG
from g4convert.checkpoint.files import parse_object
from g4convert.forward.models import Config
from g4convert.forward.probe import Probe
from g4convert.verification.logits.scores import TopLogits

_TENSORS: Final = {
    "image": ("pixel_values", "image_position_ids"),
    "audio": ("input_features", "input_features_mask"),
    "video": ("pixel_values_videos", "video_position_ids"),
}
"""Arguments of a forward that carry each kind of media; the first dimension counts items, or the frames of a video."""


@dataclass(frozen=True, slots=True, eq=False)
class MediaItem:
    """A picture, a sound or a whole video, with the place of its tokens in the prompt.

    Args:
        kind: `image`, `audio` or `video`.
        offset: position of the first soft token.
        soft: for each token from `offset` on, whether it is soft; text tokens lie between the frames of a video.
        tensors: tensors by name of the forward's argument.
    """

    kind: str
    offset: int
    soft: tuple[bool, ...]
    tensors: Mapping[str, torch.Tensor]

    def to_dict(self) -> dict[str, Any]:
        """Return the item as part of a message."""
        mask = None if all(self.soft) else list(self.soft)
        tensors = {key: encode_tensor(value) for key, value in self.tensors.items()}
        return {"kind": self.kind, "offset": self.offset, "length": len(self.soft), "soft": mask, "tensors": tensors}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One sequence for an engine.

    Args:
        ids: token ids.
        rows: positions whose next token is scored.
        media: images, videos and sounds in the sequence, in order.
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]
    media: tuple[MediaItem, ...]


class Unfilled(BaseModel):
    """A parameter of the engine that the checkpoint's tensors did not fill, and the share of it that is not filled."""

    name: str
    share: float = Field(ge=0, le=1)


class Started(BaseModel):
    """Facts of an engine that is ready, or that has loaded the checkpoint and found tensors missing.

    Args:
        name: name of the engine, with its version.
        device: device on which the engine runs; empty if it does not say.
        dtype: dtype of the forward; empty if the engine does not say.
        decodes: whether the 4-bit kernels were replaced by unquantized products of decoded weights.
        parameters: number of parameters that were searched for missing tensors; 0 if the engine cannot be searched.
        unwatched: number of parameters that could not be searched because of their dtype.
        unfilled: parameters that were not filled.
        supplied: keys of the config that the engine needs and the checkpoint lacks.
        causal: whether attention is causal for pictures, too, although the model's is bidirectional for these.
        mended: repairs that the engine needed to run here.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    name: str = ""
    device: str = ""
    dtype: str = ""
    decodes: bool = False
    parameters: int = Field(default=0, ge=0)
    unwatched: int = Field(default=0, ge=0)
    unfilled: Sequence[Unfilled] = ()
    supplied: Sequence[str] = ()
    causal: bool = False
    mended: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        names = ("name", "device", "dtype", "decodes", "parameters", "causal")
        return {name: getattr(self, name) for name in names} | {"mended": [*self.mended]}


class EngineRefusal(Exception):
    """Raised when the engine will not load a checkpoint, or not run a prompt.

    Args:
        message: message of the engine.
        place: step that failed: `build`, `load`, `start` or `prompt`.
        log: last lines that the engine printed.
    """

    def __init__(self, message: str, place: str, log: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.log = log


class ServingEngine(Protocol):
    """Interface of an engine that serves a checkpoint."""

    @property
    def takes(self) -> frozenset[str]:
        """Kinds of media that the engine is given."""
        ...

    def start(self, longest: int, top: int) -> Started:
        """Load the checkpoint.

        Args:
            longest: number of tokens of the longest prompt.
            top: number of likeliest tokens to return for each row.

        Raises:
            EngineRefusal: the engine refuses the checkpoint.
            EnvironmentFault: the engine is missing, does not answer in time, or breaks down.
        """
        ...

    def score(self, prompt: Prompt) -> TopLogits:
        """Return the log-probabilities after each scored row, [n, k].

        Raises:
            EngineRefusal: the engine refuses the prompt.
            EnvironmentFault: the engine does not answer in time, or breaks down.
        """
        ...


def config_of(checkpoint: Path) -> dict[str, Any]:
    """Read the config of a checkpoint.

    Raises:
        InputError: the config is missing or no JSON object.
    """
    hint = "restore it from where the model came from"
    return parse_object(read_bytes(checkpoint / CONFIG, MOST_CONFIG), CONFIG, hint)


def vocabulary(config: Mapping[str, Any]) -> int:
    """Return the size of a model's vocabulary."""
    return int(config.get("text_config", config)["vocab_size"])


def prompts_of(probe: Probe, config: Config) -> tuple[Prompt, ...]:
    """Return the rows of a probe as prompts, in order, without rows in which no token is scored."""
    ids = probe.arguments["input_ids"]
    attended = probe.attended.view(ids.shape)
    prompts = []
    for row, mask, counts in zip(ids, attended, probe.response, strict=True):
        row_ids = row[mask].tolist()
        rows = counts[mask].nonzero().flatten().tolist()
        if rows:
            media = tuple(_media_items(row_ids, probe.arguments, config))
            prompts.append(Prompt(tuple(row_ids), tuple(rows), media))
    return tuple(prompts)


def _media_items(ids: Sequence[int], arguments: Mapping[str, Any], config: Config) -> Iterator[MediaItem]:
    """Yield the media items of one sequence; media probes have one row."""
    for kind, (values, places) in _TENSORS.items():
        if values not in arguments:
            continue
        soft = getattr(config, f"{kind}_token_id")
        runs = [(first, len(run)) for first, run in _find_runs(ids, soft)]
        if kind == "video":
            begin, end = runs[0][0], sum(runs[-1])
            tensors = {key: arguments[key] for key in (values, places)}
            yield MediaItem(kind, begin, tuple(id_ == soft for id_ in ids[begin:end]), tensors)
            continue
        for number, (first, length) in enumerate(runs):
            tensors = {key: arguments[key][number : number + 1] for key in (values, places)}
            yield MediaItem(kind, first, (True,) * length, tensors)


def _find_runs(ids: Sequence[int], token: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the runs of `token`, each with its position."""
    place = 0
    for id_, group in groupby(ids):
        run = list(group)
        if id_ == token:
            yield place, run
        place += len(run)


def encode_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """Return a tensor as JSON: dtype, shape, and its bytes in base64."""
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "bytes": base64.b64encode(content).decode()}
