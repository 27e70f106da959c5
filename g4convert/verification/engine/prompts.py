"""Questions for an engine and its answers: tokens and media in, log-probabilities of prompt tokens out.

    Probe --prompts_of--> Prompt, one for each row, without padding --> Engine.score --> TopLogits

An engine pads nothing, shows no logits and nothing of its inside: only the likeliest tokens at each place and the
true one's log-probability. That is the form in which a stored reference keeps logits, so it is `TopLogits` here, too;
the log-sum-exp is not known and 0.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from g4convert.bounded import MOST_CONFIG, read_bytes
from g4convert.checkpoint.directory import CONFIG
from g4convert.checkpoint.files import parse_object
from g4convert.forward.models import Config
from g4convert.forward.probe import Probe
from g4convert.verification.logits.scores import TopLogits

__all__ = [
    "Engine",
    "Item",
    "Prompt",
    "Refused",
    "Started",
    "Unfilled",
    "config_of",
    "prompts_of",
    "sent",
    "vocabulary",
]

_TENSORS: Final = {
    "image": ("pixel_values", "image_position_ids"),
    "audio": ("input_features", "input_features_mask"),
    "video": ("pixel_values_videos", "video_position_ids"),
}
"""Arguments of a forward that carry each kind; the first dimension counts items, of a video its frames."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A picture, a sound or a whole video, and the tokens it stands for.

    Args:
        kind: `image`, `audio` or `video`.
        offset: position of its first soft token.
        soft: tokens from there on that are soft; words stand between the frames of a video.
        tensors: by argument of a forward.
    """

    kind: str
    offset: int
    soft: tuple[bool, ...]
    tensors: Mapping[str, torch.Tensor]

    def to_dict(self) -> dict[str, Any]:
        """Return the item as part of a message."""
        mask = None if all(self.soft) else list(self.soft)
        tensors = {key: sent(value) for key, value in self.tensors.items()}
        return {"kind": self.kind, "offset": self.offset, "length": len(self.soft), "soft": mask, "tensors": tensors}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One sequence.

    Args:
        ids: its tokens.
        rows: places whose next token counts.
        media: images, videos and sounds in it, in order.
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]
    media: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Unfilled:
    """A parameter of the engine's that no tensor of the checkpoint reached, or not all of it."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that is ready, or has loaded and found tensors missing.

    Args:
        name: name of the engine, with its version.
        device: on which it runs, as far as it says.
        dtype: dtype of its forward; empty where it does not say.
        decodes: whether its 4-bit kernels were replaced by plain products of decoded weights.
        parameters: parameters searched for missing tensors; 0 where the engine cannot be looked into.
        unwatched: number of those that could not be searched, for their dtype.
        unfilled: those that a tensor is missing of.
        supplied: keys of the config that the engine needs and the checkpoint has not.
        causal: whether its attention cannot let pictures see themselves.
        mended: repairs that the engine needed to run here.
    """

    name: str
    device: str = ""
    dtype: str = ""
    decodes: bool = False
    parameters: int = 0
    unwatched: int = 0
    unfilled: tuple[Unfilled, ...] = ()
    supplied: tuple[str, ...] = ()
    causal: bool = False
    mended: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        names = ("name", "device", "dtype", "decodes", "parameters", "causal")
        return {name: getattr(self, name) for name in names} | {"mended": [*self.mended]}


class Refused(Exception):
    """Raised when the engine will not load a checkpoint, or not run a prompt.

    Args:
        message: the engine's own.
        place: `build`, `load`, `start` or `prompt`.
        log: the end of what it printed.
    """

    def __init__(self, message: str, place: str, log: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.log = log


class Engine(Protocol):
    """Something that serves a checkpoint."""

    @property
    def takes(self) -> frozenset[str]:
        """Kinds of media it is given."""
        ...

    def start(self, longest: int, top: int) -> Started:
        """Load the checkpoint.

        Args:
            longest: tokens of the longest prompt.
            top: number of the likeliest tokens that are asked for.

        Raises:
            Refused: it will not.
            EnvironmentFault: it is not there, does not answer in time, or breaks down.
        """
        ...

    def score(self, prompt: Prompt) -> TopLogits:
        """Log-probabilities after each of the rows that count, [n, k].

        Raises:
            Refused: it takes no such prompt.
            EnvironmentFault: it does not answer in time, or breaks down.
        """
        ...


def config_of(checkpoint: Path) -> dict[str, Any]:
    """The config of a checkpoint that is served.

    Raises:
        InputError: there is none, or no JSON object.
    """
    hint = "restore it from where the model came from"
    return parse_object(read_bytes(checkpoint / CONFIG, MOST_CONFIG), CONFIG, hint)


def vocabulary(config: Mapping[str, Any]) -> int:
    """The number of tokens that a model knows."""
    return int(config.get("text_config", config)["vocab_size"])


def prompts_of(probe: Probe, config: Config) -> tuple[Prompt, ...]:
    """The rows of a probe, in order; those in which nothing counts are left out.

    Args:
        probe: any but a drafter's.
        config: config of the model; tells soft tokens.
    """
    ids = probe.arguments["input_ids"]
    attended = probe.attended.view(ids.shape)
    found = []
    for row, mask, counts in zip(ids, attended, probe.response, strict=True):
        kept = row[mask].tolist()
        rows = counts[mask].nonzero().flatten().tolist()
        if rows:
            media = tuple(_media(kept, probe.arguments, config))
            found.append(Prompt(tuple(kept), tuple(rows), media))
    return tuple(found)


def _media(ids: Sequence[int], arguments: Mapping[str, Any], config: Config) -> Iterator[Item]:
    """The items in one sequence; media probes have one row."""
    for kind, (values, places) in _TENSORS.items():
        if values not in arguments:
            continue
        soft = getattr(config, f"{kind}_token_id")
        runs = [(first, len(run)) for first, run in _runs(ids, soft)]
        if kind == "video":
            begin, end = runs[0][0], sum(runs[-1])
            tensors = {key: arguments[key] for key in (values, places)}
            yield Item(kind, begin, tuple(id_ == soft for id_ in ids[begin:end]), tensors)
            continue
        for number, (first, length) in enumerate(runs):
            tensors = {key: arguments[key][number : number + 1] for key in (values, places)}
            yield Item(kind, first, (True,) * length, tensors)


def _runs(ids: Sequence[int], wanted: int) -> Iterator[tuple[int, list[int]]]:
    """Runs of one token, with their places."""
    place = 0
    for id_, group in groupby(ids):
        run = list(group)
        if id_ == wanted:
            yield place, run
        place += len(run)


def sent(tensor: torch.Tensor) -> dict[str, Any]:
    """A tensor as JSON: dtype, shape, and its bytes in base64."""
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "bytes": base64.b64encode(content).decode()}
