"""Limits of kernels: sizes that they take, pad or refuse."""

from math import lcm

from hypothesis import given
from hypothesis import strategies as st

from g4convert.engines.limits import (
    Kernel,
    NoKernel,
    Packing,
    Partition,
    sglang_linear,
    vllm_cpu_experts,
    vllm_cpu_linear,
    vllm_experts,
    vllm_linear,
)

SIZES = st.integers(1, 64).map(lambda number: number * 16)
GROUPS = st.sampled_from([None, 16, 32, 64, 128, 256])


@given(SIZES, SIZES, GROUPS, st.sampled_from([1, 2, 4]))
def test_whole_groups_on_every_gpu_or_no_kernel(n: int, k: int, g: int | None, tp: int) -> None:
    for kernel in (vllm_linear, sglang_linear, vllm_cpu_linear):
        found = kernel(Partition(n, k, k * tp), Packing(4, g))
        if g is not None and k % g:
            assert isinstance(found, NoKernel)
            assert str(g) in str(found.reason)


@given(SIZES, SIZES, st.sampled_from([None, 32, 64, 128]))
def test_marlin_pads_in_vllm_what_has_no_tile_in_sglang(n: int, k: int, g: int | None) -> None:
    fits = (n % 64 == 0 and k % 128 == 0) or (n % 128 == 0 and k % 64 == 0)
    part, packing = Partition(n, k, k), Packing(4, g)
    theirs, ours = sglang_linear(part, packing), vllm_linear(part, packing)
    if g is not None and k % g:
        assert isinstance(theirs, NoKernel)
        assert isinstance(ours, NoKernel)
        return
    assert isinstance(ours, Kernel)
    assert isinstance(theirs, Kernel) is fits is (ours.padded == "")


@given(st.integers(1, 64).map(lambda number: number * 32), st.sampled_from([32, 64, 128, None]))
def test_experts_are_padded_to_the_next_tile(i: int, g: int | None) -> None:
    found = vllm_experts(2816, i, i, Packing(4, g))
    if g is not None and i % g:
        assert isinstance(found, NoKernel)
        return
    assert isinstance(found, Kernel)
    wide = int(found.padded.rpartition(" ")[2]) if found.padded else i
    assert wide >= i
    assert wide % lcm(64, g or 1) == 0
    assert wide - i < lcm(64, g or 1)


def test_experts_without_marlin() -> None:
    assert vllm_experts(2816 + 32, 704, 704, Packing(4, 32)) == Kernel(
        "Triton", slow="Marlin takes no hidden size of 2848"
    )
    assert isinstance(vllm_experts(2816 + 32, 704, 704, Packing(4, None)), NoKernel)
    assert isinstance(vllm_cpu_experts(Packing(8, 64)), NoKernel)
    assert isinstance(vllm_cpu_experts(Packing(4, 64)), Kernel)
    assert isinstance(vllm_cpu_linear(Partition(48, 64, 64), Packing(4, 32)), NoKernel)
    assert isinstance(vllm_cpu_linear(Partition(64, 64, 64), Packing(8, 32)), NoKernel)
