"""Cuts pictures into the patches that a model takes, by the image processor in its checkpoint.

    picture, uint8 [height, width, 3] --resized to the soft tokens' budget--> patches, uint8 [p, v]

transformers' processor on Pillow does it, whichever others are installed: that on torchvision rounds some pixels in
another way, and one request has one result on every machine. The unified family's has no form on Pillow (5.22). It
resizes and cuts alike, and then merges k x k patches into one, as here.

Letters: p patches, v values of a patch, k patches of a side that become one soft token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import Gemma4ImageProcessorPil

from g4convert.array_types import F32, I32, U8
from g4convert.checkpoint.beside import PROCESSORS
from g4convert.conversion.pictures import Patches
from g4convert.errors import InputError
from g4convert.forward.media import takes
from g4convert.forward.models import Config, reading

_REMEDY: Final = "copy processor_config.json from the model's repository"


def reason_against(directory: Path, config: Config) -> str:
    """Return the reason why a checkpoint takes no pictures here; empty if it takes them."""
    if not takes(config, "image"):
        return "the model takes no pictures"
    if not any((directory / name).is_file() for name in PROCESSORS):
        return f"the checkpoint has no {PROCESSORS[0]}"
    return ""


@dataclass(frozen=True, slots=True)
class PictureCutter:
    """The image processor of a checkpoint.

    Args:
        config: config of the model.
        processor: the processor, of transformers.
    """

    config: Config
    processor: Any

    @classmethod
    def of(cls, directory: Path, config: Config) -> "PictureCutter":
        """Read the processor of a checkpoint.

        Raises:
            InputError: the checkpoint takes no pictures, or its processor is not of this model.
            FormatError: the processor's file cannot be read.
        """
        if why := reason_against(directory, config):
            raise InputError(f"{directory}: {why}", hint=_REMEDY if takes(config, "image") else "leave pictures out")
        with reading(f"{directory}: the image processor", _REMEDY):
            processor = Gemma4ImageProcessorPil.from_pretrained(directory, local_files_only=True)
        vision = config.vision_config
        sizes = processor.patch_size, processor.pooling_kernel_size
        if sizes != (vision.patch_size, vision.pooling_kernel_size):
            raise InputError(
                f"{directory}: the image processor has patches of {sizes[0]} pixels and pools {sizes[1]}, the model "
                f"{vision.patch_size} and {vision.pooling_kernel_size}",
                hint=_REMEDY,
            )
        return cls(config, processor)

    @property
    def most_soft_tokens(self) -> int:
        """Most placeholders of a picture."""
        return int(self.processor.max_soft_tokens)

    def cut(self, picture: U8) -> Patches:
        """Cut a picture, uint8 [height, width, 3].

        Raises:
            ValueError: its form is such that no patch is left.
        """
        processed = self.processor(picture, input_data_format="channels_last", return_tensors="np")
        positions: I32 = processed["image_position_ids"][0].astype(np.int32)
        real = positions[:, 0] >= 0
        pixels, positions = _eight_bits(processed["pixel_values"][0][real]), positions[real]
        soft = int(processed["num_soft_tokens_per_image"][0])
        if self.config.model_type == "gemma4_unified":
            pixels, positions = merged(pixels, positions, self.processor.pooling_kernel_size)
        return Patches(pixels, positions, soft)


def merged(pixels: U8, positions: I32, k: int) -> tuple[U8, I32]:
    """Merge each k x k neighbours of a grid of patches, uint8 [p, v], which lie row by row.

    Returns:
        Patches [p / k^2, v * k^2], a larger patch row by row, and their positions.
    """
    columns, rows = (positions.max(axis=0) + 1).tolist()
    side = round((pixels.shape[1] // 3) ** 0.5)
    grid = pixels.reshape(rows // k, k, columns // k, k, side, side, 3).transpose(0, 2, 1, 4, 3, 5, 6)
    places = positions.reshape(rows // k, k, columns // k, k, 2)[:, 0, :, 0] // k
    return np.ascontiguousarray(grid).reshape(-1, pixels.shape[1] * k * k), places.reshape(-1, 2)


def _eight_bits(pixels: F32) -> U8:
    """Return pixels of 0..1 as bytes.

    Raises:
        ValueError: they are no multiples of 1 / 255, as the processor normalises them.
    """
    whole = np.rint(pixels * 255)
    if not np.array_equal(as_floats(np.clip(whole, 0, 255).astype(np.uint8)), pixels):
        raise ValueError("the processor gives other pixels than eight bits of 0 to 1")
    return whole.astype(np.uint8)


def as_floats(pixels: U8) -> F32:
    """Return pixels as the model takes them, 0..1."""
    floats: F32 = pixels.astype(np.float32) / np.float32(255)
    return floats
