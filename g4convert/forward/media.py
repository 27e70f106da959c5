"""Pictures, videos and sounds in the form that transformers' processors hand to a Gemma 4 model.

    pixel_values        float32 [images, patches, 3 * side^2]   a patch row by row, channels last, 0..1
    image_position_ids  int64   [images, patches, 2]            (x, y) of each patch; (-1, -1) is padding
    input_features      float32 [sounds, frames, width]         log-mel frames, or samples of the waveform
    input_features_mask bool    [sounds, frames]                False is padding

A tower turns `pooling_kernel_size`^2 patches into one soft token, and 4 mel frames into one; the unified family
gets one merged patch and one frame of samples for each. Pictures are grids of coloured cells, one soft token
each, and sounds are rows of notes, so that an answer about them can be right or wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from g4convert.devices import device_of, moved
from g4convert.forward.models import Config, Model, quiet_transformers

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.1),
    "blue": (0.1, 0.1, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
}
_NOTES = ("do", "re", "mi", "fa", "so", "la")
_TOKENS_PER_NOTE = 4

_NOISE = 0.05


@dataclass(frozen=True, slots=True)
class Media:
    """Some items of one kind, and the arguments of `forward` that carry them."""

    kind: str
    """`image`, `audio` or `video`."""
    soft_tokens: tuple[int, ...]
    """Number of placeholders of each image, sound or video frame, in order."""
    arguments: Mapping[str, torch.Tensor]
    content: tuple[str, ...]
    """Content of each in words: colours in reading order, or notes."""


def takes(config: Config, kind: str) -> bool:
    """Return whether a model with this config has a way in for `image`, `audio` or `video`."""
    section, token = {
        "image": ("vision_config", "image_token_id"),
        "video": ("vision_config", "video_token_id"),
        "audio": ("audio_config", "audio_token_id"),
    }[kind]
    return getattr(config, section, None) is not None and getattr(config, token, None) is not None


def pictures(
    config: Config, sizes: Sequence[tuple[int, int]], generator: torch.Generator, *, padding: int = 0
) -> Media:
    """Return pictures of coloured cells.

    Args:
        config: config of the model.
        sizes: columns and rows of each picture, in soft tokens.
        generator: generator of colours and noise.
        padding: soft tokens of padding on the largest picture; smaller ones are padded to the same number.

    Returns:
        The pictures, batched as one `pixel_values`.
    """
    room = max(columns * rows for columns, rows in sizes) + padding
    drawn = [_draw(config, columns, rows, room, generator) for columns, rows in sizes]
    return Media(
        "image",
        tuple(columns * rows for columns, rows in sizes),
        {
            "pixel_values": torch.stack([pixels for pixels, _, _ in drawn]),
            "image_position_ids": torch.stack([positions for _, positions, _ in drawn]),
        },
        tuple(words for _, _, words in drawn),
    )


def video(config: Config, frames: int, size: tuple[int, int], generator: torch.Generator) -> Media:
    """Return one video of `frames` pictures of the same size, in soft tokens; see `videos_encoded`."""
    frames_of_video = pictures(config, [size] * frames, generator)
    arguments = {
        "pixel_values_videos": frames_of_video.arguments["pixel_values"],
        "video_position_ids": frames_of_video.arguments["image_position_ids"],
        "num_frames_per_video": torch.tensor([frames]),
    }
    return Media("video", frames_of_video.soft_tokens, arguments, frames_of_video.content)


def sounds(config: Config, lengths: Sequence[int], generator: torch.Generator, *, padding: int = 0) -> Media:
    """Return rows of notes.

    Args:
        config: config of the model.
        lengths: lengths of the sounds, in soft tokens.
        generator: generator of notes and noise.
        padding: soft tokens of padding on the longest sound; shorter ones are padded to the same length.

    Returns:
        The sounds, batched as one `input_features`.
    """
    unified = config.model_type == "gemma4_unified"
    merge = 1 if unified else 4
    audio = config.audio_config
    width = audio.audio_embed_dim if unified else audio.subsampling_conv_channels[0]
    total = (max(lengths) + padding) * merge
    features, masks, content = [], [], []
    for length in lengths:
        count = -(-length // _TOKENS_PER_NOTE)
        notes = torch.randint(len(_NOTES), (count,), generator=generator)
        played = _waves(notes, width) if unified else _mels(notes, width)
        waveform = played.repeat_interleave(_TOKENS_PER_NOTE * merge, dim=0)[: length * merge]
        waveform = waveform + _NOISE * torch.randn(waveform.shape, generator=generator)
        features.append(torch.nn.functional.pad(waveform, (0, 0, 0, total - len(waveform))))
        masks.append(torch.arange(total) < len(waveform))
        content.append(" ".join(_NOTES[note] for note in notes))
    arguments = {"input_features": torch.stack(features), "input_features_mask": torch.stack(masks)}
    return Media("audio", tuple(lengths), arguments, tuple(content))


def _draw(
    config: Config, columns: int, rows: int, room: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Draw one picture: pixels [room * pool^2, 3 * side^2], positions [room * pool^2, 2], and its colours."""
    vision = config.vision_config
    pool = vision.pooling_kernel_size
    side = vision.patch_size
    if config.model_type == "gemma4_unified":  # patches arrive merged, one for each soft token
        side, pool = side * pool, 1
    cells = torch.randint(len(COLOURS), (rows, columns), generator=generator)
    colours = torch.tensor(list(COLOURS.values()))[cells].repeat_interleave(pool, 0).repeat_interleave(pool, 1)
    y, x = torch.meshgrid(torch.arange(rows * pool), torch.arange(columns * pool), indexing="ij")
    count = rows * columns * pool**2
    pixels = colours.reshape(count, 1, 3).expand(count, side**2, 3).reshape(count, -1)
    pixels = (pixels + _NOISE * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    empty = room * pool**2 - count
    positions = torch.stack([x, y], dim=-1).reshape(-1, 2)
    names = tuple(COLOURS)
    return (
        torch.nn.functional.pad(pixels, (0, 0, 0, empty)),
        torch.nn.functional.pad(positions, (0, 0, 0, empty), value=-1),
        ", ".join(" ".join(names[cell] for cell in row) for row in cells.tolist()),
    )


def _mels(notes: torch.Tensor, bins: int) -> torch.Tensor:
    """Return log-mel frames [notes, bins]: silence with a peak whose place is the note."""
    centres = (notes[:, None] + 0.5) * bins / len(_NOTES)
    return 3 * torch.exp(-(((torch.arange(bins) - centres) / (bins / 16)) ** 2)) - 1


def _waves(notes: torch.Tensor, samples: int) -> torch.Tensor:
    """Return frames of a sine [notes, samples]; each note has a whole number of periods in a frame."""
    return torch.sin(2 * torch.pi * (notes[:, None] + 3) * torch.arange(samples) / samples)


def call(model: Model, arguments: Mapping[str, Any], *, use_cache: bool) -> Any:  # noqa: ANN401 -- a ModelOutput
    """Run one forward without gradients, on the model's device; see `videos_encoded`."""
    inputs = moved(arguments, device_of(model))
    with torch.no_grad(), quiet_transformers():  # packed modules are unpacked in the first forward
        return model(**videos_encoded(model, inputs), use_cache=use_cache)


def videos_encoded(model: Model, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a forward in which videos are as this release of transformers takes them.

    Releases that ask for `num_frames_per_video` have the frames of all videos in one row. Their `forward` does not
    hand it on until 5.23 and so always raises (5.22.2); videos are encoded here, by the model's own method, in all of
    them. Older ones (5.17) want a dimension of videos instead.
    """
    rest = dict(arguments)
    if "pixel_values_videos" not in rest:
        return rest
    pixels, positions, frames = (
        rest.pop(key) for key in ("pixel_values_videos", "video_position_ids", "num_frames_per_video")
    )
    encode = model.model.get_video_features
    if "num_frames_per_video" in signature(encode).parameters:
        return {**rest, "mm_encoder_outputs": {"video": encode(pixels, positions, frames)}}
    return {**rest, "pixel_values_videos": pixels[None], "video_position_ids": positions[None]}
