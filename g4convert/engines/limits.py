"""The kernel that takes a packed weight, computed from the sizes that one GPU holds.

An engine selects a kernel when it builds a module, so the server does not start if no kernel takes the size. The rules
below come from the engines' sources: files under `vllm/model_executor/` of vLLM 0.33.0 and under `sglang/` of SGLang
0.5.23.

    vLLM, dense     kernels/linear/__init__.py:539: the first that fits of Machete, Marlin, Conch, Exllama, Triton,
                    Humming; on Hopper, Humming is before Marlin (layers/quantization/utils/humming/priority.py)
      any           layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py:170: whole groups
      Machete       Hopper; groups of 64, 128 or a row; k % 64, n % 128 (layers/quantization/utils/machete_utils.py:22)
      Marlin        Turing and newer; groups of 32, 64, 128 or a row; other sizes are padded with zeros in each forward
                    pass (layers/quantization/utils/marlin_utils.py:222)
      Triton        4 bits, n % 8, groups of 256 (or all k) beside Marlin's (kernels/linear/mixed_precision/
                    triton_w4a16.py:318)
      Humming       Turing and newer; 2 to 8 bits, whole words in a row; groups of 16, 32, 64, ... or a row
                    (schema/humming.py:589, tune/candidate.py:431 of humming-kernels 0.1.19, a requirement of vLLM's
                    wheel); pads as it loads (layers/quantization/utils/humming/linear.py:141)
    vLLM, experts   layers/fused_moe/oracle/int_wna16.py:126: Marlin, Triton, Humming, on Hopper Humming first;
                    FlashInfer's kernels know SiLU only
      any           compressed_tensors_moe/compressed_tensors_moe_wna16.py:238, :244: whole groups
      Marlin        h % 128; i is padded to 64 (marlin_utils.py:335, :356)
      Triton        4 and 8 bits, scales by group only (compressed_tensors_moe_wna16.py:127)
      Humming       as for dense, scales by group only (compressed_tensors_moe_wna16.py:127)
    vLLM, tables    codes that do not cross from one word into the next, so 2, 4 and 8 bits
                    (layers/quantization/compressed_tensors/compressed_tensors_embedding.py:97)
    vLLM on a CPU   kernels/linear/mixed_precision/cpu.py:27: 4 bits, k % 32, n % 32; experts need AMX, and no groups
                    of 32 (layers/fused_moe/experts/cpu_moe.py:883, :909)
    SGLang, dense   Marlin, Ampere and newer, and no padding: its tiles are 128 x 64 or 64 x 128
                    (kernels/jit/csrc/gemm/marlin/gptq_marlin.cuh:117, :231); whole groups
                    (srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py:128)

    bits            4 and 8, where nothing else is said. vLLM builds 2 to 8 (compressed_tensors_wNa16.py:41) in words
                    without gaps (:70), as compressed-tensors packs them since 0.18; SGLang stops at others than 4 and 8
                    (compressed_tensors_wNa16.py:55)

`x % m` above means that m divides x. Letters: n out_features, k in_features, h hidden_size, i width of an expert, g
group_size. Exllama takes no bf16. Conch is an optional package, which verdicts do not count on.
"""

from dataclasses import dataclass
from math import lcm
from typing import Final

from g4convert.engines.reason import Reason

_MARLIN_GROUPS: Final = {None, 32, 64, 128}
_MACHETE_GROUPS: Final = {None, 64, 128}
_TRITON_GROUPS: Final = {256}
_INT4: Final = 4
_KERNEL_BITS: Final = {4, 8}
_HUMMING_BITS: Final = range(2, 9)
_LEAST_GROUP: Final = 16
_CPU_TILE: Final = 32

_WORD: Final = 32

_MARLIN: Final = "Marlin"
_VLLM_MARLIN: Final = "Marlin (Humming on Hopper)"
_MACHETE: Final = "Marlin (Machete on Hopper)"
_TRITON: Final = "Triton"
_HUMMING: Final = "Humming"
_OF_ROWS: Final = (
    "on Hopper only with `--moe-backend marlin`: Humming, which stands before it there, takes scales by group"
)


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
        slow: what this kernel needs, or why it is not the engine's best for the part; empty otherwise.
        note: remark that holds for all parts that it takes; empty without one.
    """

    kernel: str
    padded: str = ""
    slow: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class NoKernel:
    """The reason why no kernel takes a part."""

    reason: Reason


def vllm_linear(part: Partition, packing: Packing) -> Kernel | NoKernel:
    """Return vLLM's kernel for a Linear on an NVIDIA GPU, or why it has none."""
    g = packing.group_size
    if torn := _torn(part.k, part.full_k, g):
        return torn
    if packing.num_bits in _KERNEL_BITS and g in _MARLIN_GROUPS:
        padded = _marlin_padding(part.n, part.k, g)
        machete = g in _MACHETE_GROUPS and part.k % 64 == 0 and part.n % 128 == 0
        return Kernel(_MACHETE if machete else _VLLM_MARLIN, padded)
    if packing.num_bits == _INT4 and part.n % 8 == 0 and (g in _TRITON_GROUPS or g == part.full_k):
        return Kernel(_TRITON, slow=f"slower: Marlin takes no groups of {g}")
    return _humming(packing, part.k)


def vllm_experts(h: int, i: int, full_i: int, packing: Packing) -> Kernel | NoKernel:
    """Return vLLM's kernel for the experts of a layer on an NVIDIA GPU, or why it has none.

    Args:
        h: hidden_size.
        i: width of each expert on one GPU.
        full_i: width of each expert.
        packing: packing of all three projections.
    """
    g, bits = packing.group_size, packing.num_bits
    if torn := _torn(h, h, g) or _torn(i, full_i, g):
        return torn
    if bits in _KERNEL_BITS and h % 128 == 0 and g in _MARLIN_GROUPS:
        wide = _round_up(i, lcm(64, g or 1))
        padded = f"{i} to {wide}" if wide != i else ""
        return Kernel(_VLLM_MARLIN, padded) if g else Kernel(_MARLIN, padded, _OF_ROWS)
    if g is None:
        needs = f"a hidden size that 128 divides, not {h}" if bits in _KERNEL_BITS else f"4 or 8 bits, not {bits}"
        return NoKernel(Reason(f"scales of whole rows need Marlin, which needs {needs}"))
    if bits not in _KERNEL_BITS:
        found = _humming(packing, h)
        return found if isinstance(found, NoKernel) else _humming(packing, i)
    why = f"Marlin takes no groups of {g}" if g not in _MARLIN_GROUPS else f"Marlin takes no hidden size of {h}"
    return Kernel(_TRITON, slow=f"slower: {why}")


def crosses_words(packing: Packing) -> bool:
    """Return whether codes cross from one word into the next: of 3, 5, 6 and 7 bits."""
    return _WORD % packing.num_bits != 0


def vllm_table(packing: Packing) -> NoKernel | None:
    """Return why vLLM's lookup does not read a packed table; None if it does."""
    if not crosses_words(packing):
        return None
    return NoKernel(
        Reason(
            f"codes of {packing.num_bits} bits cross from one word into the next, which its lookup does not read",
            source="compressed_tensors_embedding.py:97",
        )
    )


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


def _humming(packing: Packing, k: int) -> Kernel | NoKernel:
    """Return vLLM's kernel for what its other kernels do not take, or why it has none.

    Args:
        packing: packing of the weight.
        k: in_features on one GPU.
    """
    g, bits = packing.group_size, packing.num_bits
    if bits not in _HUMMING_BITS:
        return NoKernel(Reason(f"no kernel for {bits} bits"))
    if g is not None and (g < _LEAST_GROUP or g & (g - 1)):
        return NoKernel(Reason(f"no kernel for groups of {g}"))
    if k * bits % _WORD:
        return NoKernel(Reason(f"{k} inputs of {bits} bits are no whole words"))
    what = f"groups of {g}" if bits in _KERNEL_BITS else f"{bits} bits"
    return Kernel(_HUMMING, note=f"{_HUMMING} is compiled when the server starts: Marlin takes no {what}")


def _odd_bits(packing: Packing) -> NoKernel | None:
    """Return a refusal of weights of other than 4 and 8 bits, otherwise None."""
    return None if packing.num_bits in _KERNEL_BITS else NoKernel(Reason(f"no kernel for {packing.num_bits} bits"))


def _torn(k: int, full_k: int, g: int | None) -> NoKernel | None:
    """Return a refusal if a GPU would hold a fraction of a group, otherwise None."""
    if g is None or k % g == 0:
        return None
    share = f" / {full_k // k} = {k}" if k != full_k else ""
    return NoKernel(Reason(f"{full_k} inputs", share=share, rest=f", not a multiple of {g}", group=g))


def _marlin_padding(n: int, k: int, g: int | None) -> str:
    """Return the padding to the cheaper of Marlin's two tiles, as text; empty if a tile fits. Groups stay whole."""
    group = g or 1
    sizes = (_round_up(n, 64), _round_up(k, lcm(128, group))), (_round_up(n, 128), _round_up(k, lcm(64, group)))
    wide = min(sizes, key=lambda size: (size[0] * size[1], sum(size)))
    changes = [f"{was} to {becomes}" for was, becomes in zip((n, k), wide, strict=True) if was != becomes]
    return " and ".join(changes)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
