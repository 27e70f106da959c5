"""The kernel that takes a packed weight, computed from the sizes that one GPU holds.

An engine selects a kernel when it builds a module, so the server does not start if no kernel takes the size. The rules
below come from the engines' sources: files under `vllm/model_executor/` of vLLM 0.33.0 and under `sglang/` of SGLang
0.5.23.

    vLLM, dense     kernels/linear/__init__.py:539: Machete, Marlin, Conch, Exllama, Triton, Humming, whichever fits
      any           layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py:170: whole groups
      Machete       Hopper; groups of 64, 128 or a row; k % 64, n % 128 (layers/quantization/utils/machete_utils.py:22)
      Marlin        Turing and newer; groups of 32, 64, 128 or a row; other sizes are padded with zeros in each forward
                    pass (layers/quantization/utils/marlin_utils.py:222)
      Triton        4 bits, n % 8, groups of 256 (or all k) beside Marlin's (kernels/linear/mixed_precision/
                    triton_w4a16.py:318)
    vLLM, experts   layers/fused_moe/oracle/int_wna16.py:126: Marlin, then Triton; FlashInfer's kernels know SiLU only
      any           compressed_tensors_moe/compressed_tensors_moe_wna16.py:238, :244: whole groups
      Marlin        h % 128; i is padded to 64 (marlin_utils.py:335, :356)
      Triton        scales by group only (compressed_tensors_moe_wna16.py:127)
    vLLM on a CPU   kernels/linear/mixed_precision/cpu.py:27: 4 bits, k % 32, n % 32; experts need AMX, and no groups
                    of 32 (layers/fused_moe/experts/cpu_moe.py:883, :909)
    SGLang, dense   Marlin, Ampere and newer, and no padding: its tiles are 128 x 64 or 64 x 128
                    (kernels/jit/csrc/gemm/marlin/gptq_marlin.cuh:117, :231); whole groups
                    (srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py:128)

    bits            all of these take 4 and 8. vLLM builds 2 to 8 (compressed_tensors_wNa16.py:41), but only Humming
                    multiplies by the others; SGLang stops (compressed_tensors_wNa16.py:55)

`x % m` above means that m divides x. Letters: n out_features, k in_features, h hidden_size, i width of an expert, g
group_size. Exllama takes no bf16. Conch and Humming are optional packages, which verdicts do not count on.
"""

from dataclasses import dataclass
from math import lcm
from typing import Final

from g4convert.engines.reason import Reason

TORN: Final = ", not a multiple of "
"""Words before the group size where a GPU would hold a fraction of a group."""
_MARLIN_GROUPS: Final = {None, 32, 64, 128}
_MACHETE_GROUPS: Final = {None, 64, 128}
_TRITON_GROUPS: Final = {256}
_INT4: Final = 4
_KERNEL_BITS: Final = {4, 8}
_CPU_TILE: Final = 32

_MARLIN: Final = "Marlin"
_MACHETE: Final = "Marlin (Machete on Hopper)"
_TRITON: Final = "Triton"


@dataclass(frozen=True, slots=True)
class Packing:
    """Packing of a weight.

    Args:
        num_bits: 4 or 8; of a stored checkpoint any number.
        group_size: number of weights along k that share a scale; None for a whole row.
    """

    num_bits: int
    group_size: int | None

    @property
    def label(self) -> str:
        """The packing in a few words: `int4 g32`, `int8 per row`."""
        return f"int{self.num_bits} {f'g{self.group_size}' if self.group_size else 'per row'}"


@dataclass(frozen=True, slots=True)
class Partition:
    """The part of a matrix that one GPU holds.

    Args:
        n: out_features on this GPU, summed over all shards of a fused module.
        k: in_features on this GPU.
        full_k: in_features of the whole matrix.
    """

    n: int
    k: int
    full_k: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel that takes a part.

    Args:
        kernel: name of the kernel.
        padded: the sizes that it pads, and to which sizes, as text; empty without padding.
        slow: reason why the engine's best kernel does not take the part, or what this kernel needs; empty otherwise.
    """

    kernel: str
    padded: str = ""
    slow: str = ""


@dataclass(frozen=True, slots=True)
class NoKernel:
    """The reason why no kernel takes a part."""

    reason: Reason


def vllm_linear(part: Partition, packing: Packing) -> Kernel | NoKernel:
    """Return vLLM's kernel for a Linear on an NVIDIA GPU, or why it has none."""
    if odd := _odd_bits(packing):
        return odd
    g = packing.group_size
    if torn := _torn(part.k, part.full_k, g):
        return torn
    if g in _MARLIN_GROUPS:
        padded = _marlin_padding(part.n, part.k, g)
        hopper = g in _MACHETE_GROUPS and part.k % 64 == 0 and part.n % 128 == 0
        return Kernel(_MACHETE if hopper else _MARLIN, padded)
    if packing.num_bits == _INT4 and part.n % 8 == 0 and (g in _TRITON_GROUPS or g == part.full_k):
        return Kernel(_TRITON, slow=f"Marlin takes no groups of {g}")
    return NoKernel(Reason(f"no kernel for groups of {g}"))


def vllm_experts(h: int, i: int, full_i: int, packing: Packing) -> Kernel | NoKernel:
    """Return vLLM's kernel for the experts of a layer on an NVIDIA GPU, or why it has none.

    Args:
        h: hidden_size.
        i: width of each expert on one GPU.
        full_i: width of each expert.
        packing: packing of all three projections.
    """
    if odd := _odd_bits(packing):
        return odd
    g = packing.group_size
    if torn := _torn(h, h, g) or _torn(i, full_i, g):
        return torn
    if h % 128 == 0 and g in _MARLIN_GROUPS:
        wide = _round_up(i, lcm(64, g or 1))
        return Kernel(_MARLIN, f"{i} to {wide}" if wide != i else "")
    if g is None:
        return NoKernel(
            Reason(f"scales of whole rows need Marlin, which needs a hidden size that 128 divides, not {h}")
        )
    why = f"Marlin takes no groups of {g}" if g not in _MARLIN_GROUPS else f"Marlin takes no hidden size of {h}"
    return Kernel(_TRITON, slow=why)


def vllm_cpu_linear(part: Partition, packing: Packing) -> Kernel | NoKernel:
    """Return vLLM's kernel for a Linear on a CPU, or why it has none."""
    if packing.num_bits != _INT4:
        return NoKernel(Reason(f"no CPU kernel for {packing.num_bits} bits"))
    if torn := _torn(part.k, part.full_k, packing.group_size):
        return torn
    if part.k % _CPU_TILE or part.n % _CPU_TILE:
        return NoKernel(Reason(f"the CPU kernel takes multiples of {_CPU_TILE}, not {part.n} x {part.k}"))
    return Kernel("CPU")


def vllm_cpu_experts(packing: Packing) -> Kernel | NoKernel:
    """Return vLLM's kernel for experts on a CPU that has AMX; without AMX there is none."""
    if packing.num_bits != _INT4 or packing.group_size in {None, 32}:
        return NoKernel(Reason("the CPU kernel for experts takes 4 bits in groups of 64 or 128, and needs AMX"))
    return Kernel("CPU", slow="needs AMX")


def sglang_linear(part: Partition, packing: Packing) -> Kernel | NoKernel:
    """Return SGLang's kernel for a Linear on an NVIDIA GPU, or why it has none."""
    if odd := _odd_bits(packing):
        return odd
    g = packing.group_size
    if torn := _torn(part.k, part.full_k, g):
        return torn
    if g not in _MARLIN_GROUPS:
        return NoKernel(Reason(f"no kernel for groups of {g}"))
    if _marlin_padding(part.n, part.k, g):
        return NoKernel(
            Reason(f"{part.n} x {part.k} fits no tile of Marlin (128 x 64, 64 x 128), and SGLang does not pad")
        )
    return Kernel(_MARLIN)


def _odd_bits(packing: Packing) -> NoKernel | None:
    """Return a refusal of weights of other than 4 and 8 bits, otherwise None."""
    return None if packing.num_bits in _KERNEL_BITS else NoKernel(Reason(f"no kernel for {packing.num_bits} bits"))


def _torn(k: int, full_k: int, g: int | None) -> NoKernel | None:
    """Return a refusal if a GPU would hold a fraction of a group, otherwise None."""
    if g is None or k % g == 0:
        return None
    share = f" / {full_k // k} = {k}" if k != full_k else ""
    return NoKernel(Reason(f"{full_k} inputs", share=share, rest=f"{TORN}{g}"))


def _marlin_padding(n: int, k: int, g: int | None) -> str:
    """Return the padding to the cheaper of Marlin's two tiles, as text; empty if a tile fits. Groups stay whole."""
    group = g or 1
    sizes = (_round_up(n, 64), _round_up(k, lcm(128, group))), (_round_up(n, 128), _round_up(k, lcm(64, group)))
    wide = min(sizes, key=lambda size: (size[0] * size[1], sum(size)))
    changes = [f"{was} to {becomes}" for was, becomes in zip((n, k), wide, strict=True) if was != becomes]
    return " and ".join(changes)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
