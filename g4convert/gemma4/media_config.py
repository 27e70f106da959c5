"""Reader of the vision and audio parts of a config, with the defaults of transformers' configuration classes."""

from g4convert.gemma4.config_reader import ConfigReader
from g4convert.gemma4.other_keys import check_other_keys
from g4convert.gemma4.parts import (
    AudioEmbedder,
    AudioPart,
    AudioTower,
    VisionEmbedder,
    VisionPart,
    VisionTower,
)

_MAX_LAYERS = 1024


def read_vision(top: ConfigReader, *, unified: bool) -> VisionPart | None:
    """Return the vision part, or None for a model without vision, and note problems in the reader."""
    read = top.section("vision_config")
    if read is None:
        return None
    check_other_keys(read, "unified" if unified else "vision")
    if unified:
        width = read.integer("mm_embed_dim", 3840)
        return VisionEmbedder(
            model_patch_size=_model_patch_size(read),
            hidden_size=width,
            position_embedding_size=read.integer("mm_posemb_size", 1120),
            output_size=read.integer("output_proj_dims", 3840),
        )
    hidden_size = read.integer("hidden_size", 768)
    return VisionTower(
        hidden_size=hidden_size,
        intermediate_size=read.integer("intermediate_size", 3072),
        layers=read.integer("num_hidden_layers", 16, most=_MAX_LAYERS),
        heads=read.integer("num_attention_heads", 12),
        kv_heads=read.integer("num_key_value_heads", 12),
        head_dim=read.integer("head_dim", 64),
        patch_size=read.integer("patch_size", 16),
        position_embedding_size=read.integer("position_embedding_size", 10 * 1024),
        output_size=read.integer("output_proj_dims", hidden_size),
        clipped=read.flag("use_clipped_linears", default=False),
        standardize=read.flag("standardize", default=False),
    )


def _model_patch_size(read: ConfigReader) -> int:
    """Return the width of a merged patch in pixels; note a key that says otherwise, which transformers refuses."""
    size = read.integer("patch_size", 16) * read.integer("pooling_kernel_size", 3)
    said = read.values.get("model_patch_size", size)
    if said != size:
        read.note("model_patch_size", f"{said!r:.40}, expected {size}: patch_size times pooling_kernel_size")
    return size


def read_audio(top: ConfigReader, *, unified: bool) -> AudioPart | None:
    """Return the audio part, or None for a model without audio, and note problems in the reader."""
    read = top.section("audio_config")
    if read is None:
        return None
    check_other_keys(read, "unified" if unified else "audio")
    if unified:  # transformers' class has four names for this number
        names = ("audio_embed_dim", "hidden_size", "output_proj_dims", "audio_samples_per_token")
        return AudioEmbedder(read.integer(next((name for name in names if name in read.values), names[0]), 640))
    return AudioTower(
        hidden_size=read.integer("hidden_size", 1024),
        layers=read.integer("num_hidden_layers", 12, most=_MAX_LAYERS),
        heads=read.integer("num_attention_heads", 8),
        channels=read.pair("subsampling_conv_channels", (128, 32)),
        conv_kernel_size=read.integer("conv_kernel_size", 5),
        output_size=read.integer("output_proj_dims", 1536),
        clipped=read.flag("use_clipped_linears", default=True),
    )
