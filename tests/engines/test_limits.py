"""Limits of kernels: sizes that they take, pad or refuse."""

from math import lcm

import pytest
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
    vllm_table,
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
        "Triton", slow="slower: Marlin takes no hidden size of 2848"
    )
    assert isinstance(vllm_experts(2816 + 32, 704, 704, Packing(4, None)), NoKernel)
    assert isinstance(vllm_cpu_experts(Packing(8, 64)), NoKernel)
    assert isinstance(vllm_cpu_experts(Packing(4, 64)), Kernel)
    assert isinstance(vllm_cpu_linear(Partition(48, 64, 64), Packing(4, 32)), NoKernel)
    assert isinstance(vllm_cpu_linear(Partition(64, 64, 64), Packing(8, 32)), NoKernel)


@given(st.integers(2, 8), SIZES, SIZES, GROUPS)
def test_humming_takes_what_marlin_does_not(bits: int, n: int, k: int, g: int | None) -> None:
    """By humming-kernels 0.1.19, a requirement of vLLM 0.33's wheel, which was read and not run."""
    found = vllm_linear(Partition(n, k, k), Packing(bits, g))
    if k % (g or 1) or (k * bits % 32 and bits not in {4, 8}):
        assert isinstance(found, NoKernel)
        return
    assert isinstance(found, Kernel)
    if bits not in {4, 8}:
        assert found == Kernel(
            "Humming", note=f"Humming is compiled when the server starts: Marlin takes no {bits} bits"
        )
    elif g == 16:
        assert found == Kernel(
            "Humming", note="Humming is compiled when the server starts: Marlin takes no groups of 16"
        )


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_experts_in_other_bits(bits: int) -> None:
    assert vllm_experts(2816, 704, 704, Packing(bits, 32)) == Kernel(
        "Humming", note=f"Humming is compiled when the server starts: Marlin takes no {bits} bits"
    )
    rows = vllm_experts(2816, 704, 704, Packing(bits, None))
    assert isinstance(rows, NoKernel)
    assert f"4 or 8 bits, not {bits}" in str(rows.reason)
    assert (vllm_table(Packing(bits, 32)) is None) is (bits == 2)
    for other in (sglang_linear, vllm_cpu_linear):
        assert isinstance(other(Partition(256, 256, 256), Packing(bits, 32)), NoKernel)


def test_groups_that_are_no_power_of_two_have_no_kernel() -> None:
    for g in (8, 24, 48):
        assert isinstance(vllm_linear(Partition(256, 384, 384), Packing(4, g)), NoKernel)
        assert isinstance(vllm_linear(Partition(256, 384, 384), Packing(6, g)), NoKernel)


def test_a_gpu_with_a_part_of_a_word_has_no_kernel() -> None:
    found = vllm_linear(Partition(64, 48, 96), Packing(5, 16))
    assert isinstance(found, NoKernel)
    assert "48 inputs of 5 bits are no whole words" in str(found.reason)


def test_hopper_takes_experts_with_scales_of_rows_only_by_flag() -> None:
    found = vllm_experts(2816, 704, 704, Packing(4, None))
    assert isinstance(found, Kernel)
    assert (found.kernel, "--moe-backend marlin" in found.slow) == ("Marlin", True)
