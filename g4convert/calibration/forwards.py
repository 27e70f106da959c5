"""Makes the arguments of a forward of one sequence, with its pictures as transformers' processors hand them on."""

import numpy as np
import torch

from g4convert.array_types import I32
from g4convert.calibration.tokens import Tokens
from g4convert.forward.models import Config
from g4convert.forward.patches import as_floats


def forward_arguments(tokens: Tokens, s: int, config: Config) -> dict[str, torch.Tensor]:
    """Return the arguments of a forward of sequence `s`, with its pictures, padded to the largest of them."""
    ids = row(tokens.ids[s])
    shown = [] if tokens.pictures is None else [*tokens.pictures.of_row(s)]
    if not shown:
        return {"input_ids": ids}
    most = max(len(pixels) for pixels, _ in shown)
    pad = torch.nn.functional.pad
    pixels = [pad(torch.from_numpy(as_floats(one)), (0, 0, 0, most - len(one))) for one, _ in shown]
    places = [pad(torch.from_numpy(one.astype(np.int64)), (0, 0, 0, most - len(one)), value=-1) for _, one in shown]
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.stack(pixels),
        "image_position_ids": torch.stack(places),
    }


def without_pixels(tokens: Tokens, s: int, config: Config) -> dict[str, torch.Tensor]:
    """Return arguments that give sequence `s` its masks, without its pictures, which take a tower's time."""
    ids = row(tokens.ids[s])
    places = ids == config.image_token_id
    return {"input_ids": ids.masked_fill(places, 0), "mm_token_type_ids": places.long()}


def row(ids: I32) -> torch.Tensor:
    """Return the ids of a sequence as `input_ids`, int64 [1, t]."""
    return torch.from_numpy(ids.astype(np.int64))[None]
