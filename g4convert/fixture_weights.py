"""The values of a tiny checkpoint's tensors: random, but such that every tensor matters.

Freshly initialised models hide faults: norms are all one, a tower adds one constant to everything, tiny
routers give each expert the same weight. Here each kind of tensor has its own distribution, chosen so that
activations stay near one, logits are of order 1 to 10, attention and routing are peaked, clip limits clip
a few activations, and no two norms, scalars or limits are equal.

Values come from numpy's PCG64 keyed by (seed, tensor name), so they do not depend on the order in which a
transformers version lists its tensors. Letters: n out_features, k in_features.
"""

import math
import re
import zlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.models import Model

__all__ = ["fill"]

_Array = NDArray[np.float32]
_Draw = Callable[[np.random.Generator, tuple[int, ...]], _Array]

_Q4_0_GROUP = 32
_Q4_0_LOW, _Q4_0_HIGH = -8, 7

# What Q4_0 covers in Google's QAT exports: the decoder's Linears, the router apart.
_QAT_MODULE = re.compile(
    r"\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|experts\.\w+|per_layer_(input_gate|projection))(\.weight)?$"
)


def fill(model: Model, *, seed: int, dtype: torch.dtype, qat: bool) -> None:
    """Give every stored tensor of a model that was built on the meta device its value.

    Args:
        model: a PreTrainedModel; its parameters and persistent buffers are replaced, its non-persistent
            buffers (rotary tables) stay on meta, so it can be saved but not run.
        seed: of all values.
        dtype: of every floating-point tensor; integer tensors keep theirs.
        qat: put the decoder's Linears on a Q4_0 lattice.
    """
    values = {
        name: _value(name, tensor, seed=seed, dtype=dtype, qat=qat)
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()


def _value(name: str, tensor: torch.Tensor, *, seed: int, dtype: torch.dtype, qat: bool) -> torch.Tensor:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point():  # masked_embedding.token_ordering, a permutation of the vocabulary
        return torch.from_numpy(rng.permutation(shape[0]).astype(np.int64))
    draw = next(draw for pattern, draw in _RULES if pattern.search(name))
    if qat and _QAT_MODULE.search(name) and "vision_tower" not in name and "audio_tower" not in name:
        return torch.from_numpy(_on_lattice(draw(rng, shape), rng)).to(dtype)
    return torch.from_numpy(np.asarray(draw(rng, shape))).to(dtype)


def _normal(std: float) -> _Draw:
    return lambda rng, shape: rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def _around(centre: float, spread: float = 0.2) -> _Draw:
    """Uniform on centre * (1 +- spread)."""
    return lambda rng, shape: (centre * (1 + spread * (2 * rng.random(shape) - 1))).astype(np.float32)


def _linear(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    """[..., n, k] or a convolution's [n, ...]: Gaussian rows of different size."""
    fan_in = shape[-1] if len(shape) == 2 or shape[-1] > 8 else math.prod(shape[1:])  # noqa: PLR2004 -- [n, k]; kernels are 3 and 5
    weight = rng.standard_normal(shape, dtype=np.float32)
    weight *= np.exp(0.3 * rng.standard_normal(shape[:-1], dtype=np.float32))[..., None]
    return weight / np.float32(math.sqrt(fan_in))


def _embedding(gain: float) -> _Draw:
    """[V, d], which the model multiplies by sqrt(d)."""
    return lambda rng, shape: _normal(gain / math.sqrt(shape[-1]))(rng, shape)


def _key_norm(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    """[head_dim]: Gemma 4 does not scale attention by head_dim ** -0.5, its k_norm has learned to."""
    return _around(1.5 / math.sqrt(shape[0]))(rng, shape)


def _router(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    """[E, H]: scores of spread 3, so that a flip at the top-k border moves little weight."""
    return _normal(3.0)(rng, shape)


def _unlimited(sign: int) -> _Draw:
    return lambda _, shape: np.full(shape, sign * np.inf, dtype=np.float32)


_RULES: tuple[tuple[re.Pattern[str], _Draw], ...] = tuple(
    (re.compile(pattern), draw)
    for pattern, draw in (
        # Limits stay infinite where training never saw a range: such buffers are no faulty weights.
        (r"lconv1d\..*_min$", _unlimited(-1)),
        (r"lconv1d\..*_max$", _unlimited(1)),
        (r"_min$", _around(-2.5)),
        (r"_max$", _around(2.5)),
        (r"layer_scalar$", _around(1.0)),
        (r"router\.scale$|per_expert_scale$", _around(1.0)),
        (r"router\.proj\.weight$", _router),
        (r"std_scale$", _around(0.15)),
        (r"std_bias$|per_dim_scale$|pos_embedding$|position_embedding_table$", _normal(0.5)),
        (r"\.bias$", _normal(0.1)),
        (r"self_attn\.k_norm\.weight$", _key_norm),
        (r"^model\.(language_model\.)?norm\.weight$", _around(8.0)),
        (r"(norm\w*|patch_ln\d)\.weight$", _around(1.0)),
        (r"embed_tokens\.weight$|^lm_head\.weight$", _embedding(0.3)),
        (r"embed_tokens_per_layer\.weight$", _embedding(1.0)),
        (r"", _linear),
    )
)


def _on_lattice(weight: _Array, rng: np.random.Generator) -> _Array:
    """Move a weight [..., k] to d * q: one bf16 step d of either sign per 32 weights, q in -8..7.

    The peak of a quarter of the groups lies below level 8, as in the real exports: there the step cannot
    be read from the largest weight.
    """
    groups = weight.reshape(-1, _Q4_0_GROUP)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    level = np.where(rng.random(peak.shape) < 3 / 4, 8, rng.integers(5, 8, peak.shape))
    step = torch.from_numpy((peak / -level).astype(np.float32)).to(torch.bfloat16).float().numpy()
    codes = np.clip(np.rint(groups / step), _Q4_0_LOW, _Q4_0_HIGH)
    lattice: _Array = (step * codes).astype(np.float32).reshape(weight.shape)
    return lattice
