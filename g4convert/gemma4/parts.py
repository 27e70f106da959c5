"""The parts of a Gemma 4 model as plain values: the sizes in a config that decide which tensors exist.

Only values that change a tensor's name or shape are here; activations, windows and rope stay in the config. A model
has a `VisionTower` or a `VisionEmbedder`, and an `AudioTower` or an `AudioEmbedder`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    Args:
        full: True for full attention, False for sliding attention.
        head_dim: width of a head; full layers differ from sliding layers.
        kv_heads: number of key/value heads; full layers may differ from sliding layers.
        kv_shared: True if the layer uses the keys and values of an earlier layer, and computes none.
        k_eq_v: True if the values are the output of the key projection; there is no `v_proj`.
        intermediate_size: width of the dense MLP.
    """

    full: bool
    head_dim: int
    kv_heads: int
    kv_shared: bool
    k_eq_v: bool
    intermediate_size: int


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """PLE: a second embedding table [vocab_size, layers * width], one slice added in each layer."""

    vocab_size: int
    width: int


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts that run beside the dense MLP of every layer."""

    count: int
    intermediate_size: int
    top_k: int


@dataclass(frozen=True, slots=True)
class TextModel:
    """The decoder."""

    vocab_size: int
    hidden_size: int
    heads: int
    layers: tuple[Layer, ...]
    ple: PerLayerEmbedding | None
    experts: Experts | None
    attention_bias: bool


@dataclass(frozen=True, slots=True)
class VisionTower:
    """A vision transformer, followed by a projection from `output_size` to the decoder."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    patch_size: int
    position_embedding_size: int
    output_size: int
    clipped: bool
    standardize: bool


@dataclass(frozen=True, slots=True)
class VisionEmbedder:
    """Vision without an encoder (unified models): one dense layer over raw patches of `patch_dim` values.

    `model_patch_size` is the width of a patch in pixels.
    """

    model_patch_size: int
    hidden_size: int
    position_embedding_size: int
    output_size: int

    @property
    def patch_dim(self) -> int:
        """Number of values of a patch, which has three colours."""
        return self.model_patch_size**2 * 3


@dataclass(frozen=True, slots=True)
class AudioTower:
    """A conformer, followed by a projection from `output_size` to the decoder."""

    hidden_size: int
    layers: int
    heads: int
    channels: tuple[int, int]
    conv_kernel_size: int
    output_size: int
    clipped: bool


@dataclass(frozen=True, slots=True)
class AudioEmbedder:
    """Audio without an encoder (unified models): frames of `output_size` samples are projected as is."""

    output_size: int


@dataclass(frozen=True, slots=True)
class Drafter:
    """Parts of an MTP assistant besides its decoder; `centroids` is None without ordered embeddings."""

    backbone_hidden_size: int
    centroids: int | None


VisionPart = VisionTower | VisionEmbedder
AudioPart = AudioTower | AudioEmbedder
