"""Pictures and sounds in vLLM's containers."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any, Self

HF_NAMES = {
    "pixel_values": "pixel_values",
    "pixel_position_ids": "image_position_ids",
    "input_features_padded": "input_features",
    "input_features_mask": "input_features_mask",
    "pixel_values_videos": "pixel_values_videos",
    "pixel_position_ids_videos": "video_position_ids",
}
"""transformers' name for each of vLLM's."""


@dataclass
class PlaceholderRange:
    offset: int
    length: int
    is_embed: Any = None


@dataclass
class MultiModalFieldConfig:
    modality: str

    @classmethod
    def batched(cls, modality: str, *, keep_on_cpu: bool = False) -> Self:
        del keep_on_cpu
        return cls(modality)

    @classmethod
    def flat_from_sizes(cls, modality: str, sizes: Any) -> Self:
        assert len(sizes) == 1
        return cls(modality)


class MultiModalKwargsItems(UserDict):  # type: ignore[type-arg]
    @classmethod
    def from_hf_inputs(cls, data: dict[str, Any], fields: dict[str, MultiModalFieldConfig]) -> Self:
        assert data.keys() == fields.keys()
        (kind,) = {field.modality for field in fields.values()}
        return cls({kind: [data]})
