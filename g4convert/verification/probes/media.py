"""Probes with pictures, sounds and videos of several shapes, at several places in the text.

    image_square  text before and after           image_tall    taller than wide
    image_wide    wider than tall                 image_padded  patches at position -1
    images        two pictures of different shape in one prompt, the smaller one padded
    audio         unpadded                        audio_padded  two sounds of different length, both padded
    video         two frames, each after its time

Square pictures do not show a bin index that takes rows for columns, and pictures without padding do not show padding
counted as a token. The logits of text before the first picture must not change when a tower is wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from g4convert.errors import InputError
from g4convert.forward.conversations import Frame
from g4convert.forward.media import Media, pictures, sounds, takes, video
from g4convert.forward.models import Config
from g4convert.quantities import plural

MEDIA = ("image", "audio", "video")

_PICTURE = "Which colours do you see?"
_SOUND = "Which notes do you hear?"
_VIDEO = "Which colours do you see in each frame?"


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """Messages with placeholders of media, the media, and the answer."""

    name: str
    media: Media
    messages: Sequence[Mapping[str, Any]]
    answer: str


def media_prompts(config: Config, seed: int) -> tuple[MediaPrompt, ...]:
    """Return the prompts with every kind of media that a model with this config takes."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    if takes(config, "image"):
        for name, before, sizes, padding in (
            ("image_square", "Here is a picture of a flag.", [(3, 3)], 0),
            ("image_wide", "", [(4, 2)], 0),
            ("image_tall", "", [(2, 3)], 0),
            ("image_padded", "", [(3, 2)], 3),
            ("images", "Two pictures.", [(2, 2), (3, 1)], 0),
        ):
            prompts.append(_prompt(name, before, pictures(config, sizes, generator, padding=padding), _PICTURE))
    if takes(config, "audio"):
        for name, before, lengths, padding in (
            ("audio", "Here is a recording.", [12], 0),
            ("audio_padded", "", [8, 13], 2),
        ):
            prompts.append(_prompt(name, before, sounds(config, lengths, generator, padding=padding), _SOUND))
    if takes(config, "video"):
        prompts.append(_prompt("video", "Here is a short video.", video(config, 2, (3, 2), generator), _VIDEO))
    return tuple(prompts)


def _prompt(name: str, before: str, media: Media, question: str) -> MediaPrompt:
    items = 1 if media.kind == "video" else len(media.soft_tokens)
    parts = [{"type": "text", "text": before}] * bool(before) + [{"type": media.kind}] * items
    parts.append({"type": "text", "text": question})
    return MediaPrompt(name, media, ({"role": "user", "content": parts},), "; ".join(media.content))


def place_soft_tokens(media: Media, ids: Sequence[int], frame: Frame, config: Config) -> list[int]:
    """Replace each placeholder by the soft tokens of its item, between opening and closing token.

    Args:
        media: pictures, sounds or a video, in order.
        ids: tokens of the question, with one placeholder for each image or sound, and one for a whole video.
        frame: encoder of the times that precede the frames of a video.
        config: the model's config, with the ids of placeholders, opening and closing tokens.

    Raises:
        InputError: the prompt has not one placeholder for each item: template, tokenizer and config do not agree.
    """
    soft = getattr(config, f"{media.kind}_token_id")
    runs = iter(media.soft_tokens)
    expected = 1 if media.kind == "video" else len(media.soft_tokens)
    if ids.count(soft) != expected:
        raise InputError(
            f"{media.kind}_token_id {soft} of config.json: {ids.count(soft)} times in a prompt with "
            f"{plural(expected, f'{media.kind} part')}",
            hint="take chat template, tokenizer and config.json of one model",
        )
    placed: list[int] = []
    for id_ in ids:
        if id_ != soft:
            placed.append(id_)
        elif media.kind == "video":
            for second, count in enumerate(runs):
                placed += frame.encode(f"{' ' * bool(second)}00:{second:02d} ")
                placed += [config.boi_token_id, *[soft] * count, config.eoi_token_id]
        else:
            opening, closing = _ENDS[media.kind]
            placed += [getattr(config, opening), *[soft] * next(runs), getattr(config, closing)]
    return placed


_ENDS = {"image": ("boi_token_id", "eoi_token_id"), "audio": ("boa_token_id", "eoa_token_index")}
