"""Pictures, sounds and videos of a prompt in the form in which vLLM's processors hand them on."""

import base64
from typing import Any

import torch


def prompt(ids: list[int], media: list[dict[str, Any]], name: str) -> Any:
    """Return a prompt; `name` is in the hashes of its media, so that vLLM takes none for those of another."""
    from vllm.inputs.engine import mm_input, tokens_input

    if not media:
        return tokens_input(ids)
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    items: dict[str, list[Any]] = {}
    places: dict[str, list[Any]] = {}
    for item_json in media:
        kind, data, fields = _process(item_json)
        (item,) = MultiModalKwargsItems.from_hf_inputs(data, fields)[kind]
        items.setdefault(kind, []).append(item)
        mask = None if item_json["soft"] is None else torch.tensor(item_json["soft"])
        places.setdefault(kind, []).append(PlaceholderRange(item_json["offset"], item_json["length"], mask))
    hashes = {kind: [f"{name}.{kind}.{n}" for n in range(len(several))] for kind, several in items.items()}
    return mm_input(ids, MultiModalKwargsItems(items), hashes, places)


def _process(item: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the kind of a picture, sound or video, its tensors under vLLM's names, and how each is batched."""
    from vllm.multimodal.inputs import MultiModalFieldConfig

    tensors = {key: _tensor(value) for key, value in item["tensors"].items()}
    match item["kind"]:
        case "image":
            data = {"pixel_values": tensors["pixel_values"], "pixel_position_ids": tensors["image_position_ids"]}
        case "audio":
            mask = tensors["input_features_mask"]
            data = {"input_features_padded": tensors["input_features"], "input_features_mask": mask}
        case _:
            frames = torch.tensor([len(tensors["pixel_values_videos"])])
            flat = MultiModalFieldConfig.flat_from_sizes("video", frames)
            data = {
                "pixel_values_videos": tensors["pixel_values_videos"],
                "pixel_position_ids_videos": tensors["video_position_ids"],
                "video_frame_counts": frames,
            }
            counted = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
            return "video", data, dict(zip(data, (flat, flat, counted), strict=True))
    return item["kind"], data, dict.fromkeys(data, MultiModalFieldConfig.batched(item["kind"]))


def _tensor(sent: dict[str, Any]) -> torch.Tensor:
    """Return the tensor that a message describes: dtype, shape, and bytes in base64."""
    content = bytearray(base64.b64decode(sent["bytes"]))
    return torch.frombuffer(content, dtype=getattr(torch, sent["dtype"])).reshape(sent["shape"])
