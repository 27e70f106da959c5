"""Short probes of random tokens, one for each way into a model: for tests that compare whole outputs, row by row.

The probes of `verification.probes` are conversations in the checkpoint's own tokens, and count answers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from g4convert.forward.media import Media, pictures, sounds, takes
from g4convert.forward.models import quiet_transformers
from g4convert.forward.probe import Probe
from g4convert.verification.probes.suite import draft_probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from g4convert.forward.models import Config, Model

MEDIA_TOKENS = (
    *("boi_token_id", "image_token_id", "eoi_token_id", "video_token_id"),
    *("boa_token_id", "audio_token_id", "eoa_token_index"),
)


def prompts(model: Model, *, seed: int = 0) -> tuple[Probe, ...]:
    """A probe for each input that the model takes: text, then image and audio; every row counts.

    An assistant has a draft, and the state that it hands to its next draft.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    if config.model_type.endswith("assistant"):
        draft = draft_probe(model, seed=seed)
        return draft, Probe("state", "state", draft.arguments, draft.response, draft.targets)
    text = text_ids(config, 40, generator)
    found = [whole("text", {"input_ids": text[None]})]
    if takes(config, "image"):
        found.append(with_media(config, pictures(config, [(3, 2)], generator, padding=1), text))
    if takes(config, "audio"):
        found.append(with_media(config, sounds(config, [20], generator, padding=2), text))
    return tuple(found)


def first_of_each(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """The first probe of each kind, in order: for tests of what is around them."""
    found: dict[str, Probe] = {}
    for probe in probes:
        found.setdefault(probe.bucket, probe)
    return tuple(found.values())


def whole(kind: str, arguments: Mapping[str, Any]) -> Probe:
    """A probe of which every row counts."""
    ids = arguments["input_ids"]
    return Probe(kind, kind, arguments, torch.ones(ids.shape, dtype=torch.bool), ids.flatten())


def text_ids(config: Config, count: int, generator: torch.Generator) -> torch.Tensor:
    """int64 [count]: ids of the vocabulary that no media token has."""
    media = {getattr(config, key, None) for key in MEDIA_TOKENS} - {None}
    ids = torch.randperm(config.get_text_config().vocab_size, generator=generator)
    return torch.tensor([id_ for id_ in ids[: count + len(media)].tolist() if id_ not in media][:count])


def with_media(config: Config, media: Media, text: torch.Tensor) -> Probe:
    """Text with one image or sound in its middle, between their opening and closing token."""
    opening, closing = {
        "image": (config.boi_token_id, config.eoi_token_id),
        "audio": (config.boa_token_id, config.eoa_token_index),
    }[media.kind]
    (count,) = media.soft_tokens
    soft = [getattr(config, f"{media.kind}_token_id")] * count
    half = len(text) // 2
    ids = torch.cat([text[:half], torch.tensor([opening, *soft, closing]), text[half:]])[None]
    types = torch.zeros_like(ids)
    types[0, half + 1 : half + 1 + count] = {"image": 1, "audio": 3}[media.kind]
    return whole(media.kind, {**media.arguments, "input_ids": ids, "mm_token_type_ids": types})


def output_of(probe: Probe) -> str:
    """Output of a model that the probe is about."""
    return "last_hidden_state" if probe.bucket == "state" else "logits"


def logits(model: Model, probe: Probe) -> torch.Tensor:
    """The logits of one probe, float32 [tokens, vocabulary]; for `state` the state, [tokens, hidden]."""
    with torch.no_grad(), quiet_transformers():  # packed modules are unpacked in the first forward
        found: torch.Tensor = model(**probe.arguments, use_cache=False)[output_of(probe)]
    return found.float().flatten(0, -2)
