"""Words decoded in place of vLLM's kernels."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from g4convert.verification.engine.vllm_child.decoding import decoded


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_words_are_decoded_as_compressed_tensors_does(bits: int, lead: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (*lead, 6, 64), generator=generator, dtype=torch.int8)
    scale = torch.rand(*lead, 6, 2, generator=generator)
    words = pack_to_int32(codes.reshape(-1, 64), bits).reshape(*lead, 6, -1)
    expected = codes * scale.repeat_interleave(32, -1)
    assert torch.equal(decoded(words, scale, bits), expected)
