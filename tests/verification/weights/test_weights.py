"""The weights level: every value against its source; sound checkpoints pass, each damage is named with its module."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.damage import LAYER, PARTS, VALUES, Tensors, damaged, nibbles, rewrite, words
from helpers.dialect_sources import write
from helpers.grids import one_in, two_when_quick
from safetensors.torch import load_file, save_file

from g4convert.checkpoint.directory import Checkpoint
from g4convert.demo import Family, make
from g4convert.errors import EnvironmentFault, InputError, UnsupportedError
from g4convert.progress import Progress
from g4convert.report import Finding, Severity
from g4convert.verification.weights import level
from g4convert.verification.weights.level import check_weights
from g4convert.verification.weights.measured import RowTile, measure_tile
from g4convert.verification.weights.rows import band_of

BAD = {Severity.FAIL, Severity.WARN, Severity.INCONCLUSIVE}
CODES = ("error", "scales", "constant", "groups", "fit", "size", "codes", "kept")


def check(out: Path, source: Path, workers: int = 1) -> list[Finding]:
    return list(check_weights(Checkpoint.open(out), Checkpoint.open(source), workers=workers))


def bad(findings: Iterable[Finding]) -> list[Finding]:
    return [one for one in findings if one.severity in BAD]


def passed(findings: Iterable[Finding]) -> set[str]:
    return {one.code.removeprefix("weights.") for one in findings if one.severity is Severity.PASS}


@pytest.fixture(scope="module")
def packed_moe(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "moe"
    quantized(moe, out)
    return out


@pytest.mark.parametrize("seed", one_in(3, [0, 1, 2]))
@pytest.mark.parametrize("family", two_when_quick(list(Family)))
def test_no_false_alarm(family: Family, seed: int, tmp_path: Path) -> None:
    try:
        source = make(family, tmp_path / "source", seed=seed)
    except EnvironmentFault as fault:
        pytest.skip(fault.message)
    quantized(source, tmp_path / "out", **({"assistant": "pack"} if "assistant" in family else {}))
    findings = check(tmp_path / "out", source)
    assert bad(findings) == []
    assert passed(findings) >= set(CODES)


RECIPES = {
    "minmax": ("moe", {"method": "minmax"}),
    "g64": ("moe", {"group_size": 64, "method": "minmax"}),
    "g128": ("dense", {"group_size": 128, "method": "minmax"}),
    "rows": ("dense", {"group_size": "channel", "method": "minmax"}),
    "int8": ("moe", {"num_bits": 8}),
    "int8 rows": ("dense", {"num_bits": 8, "group_size": "channel", "method": "minmax"}),
    "positive scales": ("dense", {"signed": False}),
    "experts": ("moe", {"pack": ["experts"]}),
    "text only": ("moe", {"layout": "text-only"}),
    "tower": ("e2b", {"pack": ["attention", "mlp", "ple_projection", "vision_tower"]}),
}


@pytest.mark.parametrize("recipe", one_in(3, RECIPES))
def test_no_false_alarm_for_other_recipes(recipe: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    family, options = RECIPES[recipe]
    quantized(checkpoints(family), tmp_path / "out", **options)
    assert bad(check(tmp_path / "out", checkpoints(family))) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sources_of_other_dtypes(dtype: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("dense", dtype=dtype)
    quantized(source, tmp_path / "out")
    assert bad(check(tmp_path / "out", source)) == []


@pytest.mark.parametrize(
    "dialect", two_when_quick(["per expert", "moe.experts", "tied head", "short embedders", "no model"])
)
def test_sources_in_other_dialects(dialect: str, moe: Path, tmp_path: Path) -> None:
    source = write(moe, tmp_path / "source", dialect)
    quantized(source, tmp_path / "out")
    findings = check(tmp_path / "out", source)
    assert bad(findings) == []
    assert any(one.subject.startswith("108 experts") for one in findings)


def test_a_source_trained_on_a_grid(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("moe", qat=True)
    quantized(source, tmp_path / "lattice", method="lattice")
    quantized(source, tmp_path / "minmax", method="minmax")
    (found,) = (one for one in check(tmp_path / "lattice", source) if one.code == "weights.exact")
    assert (found.severity, found.found) == (Severity.PASS, "100 % of all groups are exact up to rounding to bf16")
    (found,) = (one for one in check(tmp_path / "minmax", source) if one.code == "weights.exact")
    assert (found.severity, found.found) == (Severity.INFO, "0 % of all groups are exact up to rounding to bf16")
    taken = shutil.copytree(tmp_path / "lattice", tmp_path / "mixed")
    module = f"{LAYER}.mlp.up_proj"
    donor = held_by(tmp_path / "minmax")
    rewrite(Path(taken), lambda held: held.update({f"{module}.{part}": donor[f"{module}.{part}"] for part in PARTS}))
    (warned,) = (one for one in check(Path(taken), source) if one.code == "weights.exact" and one.severity in BAD)
    assert warned.subject == module


def held_by(directory: Path) -> Tensors:
    held: Tensors = {}
    rewrite(directory, held.update)
    return held


@pytest.mark.parametrize("damage", VALUES)
def test_a_damage_is_named(damage: str, packed_moe: Path, moe: Path, tmp_path: Path) -> None:
    change, code, subject, text, _ = VALUES[damage]
    found = bad(check(damaged(packed_moe, tmp_path / "bad", change), moe))
    assert any(one.code == code and text in one.found and subject in f"{one.subject} {one.found}" for one in found)
    assert len(found) <= 12


def at(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda held: held.update({name: change(held[name])})


def flip_bits(*places: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Change the sign of single scales."""

    def change(scale: torch.Tensor) -> torch.Tensor:
        changed = scale.clone()
        for row, group in places:
            changed[row, group] = -changed[row, group]
        return changed

    return change


def transposed(packed: torch.Tensor) -> torch.Tensor:
    """A square weight, packed the wrong way round."""
    return words(nibbles(packed).T.contiguous())


def swapped_in_bytes(packed: torch.Tensor) -> torch.Tensor:
    stored = packed.contiguous().view(torch.uint8)
    return ((stored >> 4) | (stored << 4)).view(torch.int32)


UP, SQUARE = f"{LAYER}.mlp.up_proj", f"{LAYER}.self_attn.q_proj"
FURTHER = {
    "nibbles in bytes": (at(f"{UP}.weight_packed", swapped_in_bytes), "weights.error", UP, "high first in each byte"),
    "transposed": (at(f"{SQUARE}.weight_packed", transposed), "weights.error", SQUARE, "relative error"),
    "rows rolled": (at(f"{UP}.weight_packed", lambda t: t.roll(1, 0)), "weights.error", UP, "relative error"),
    "scales of other rows": (at(f"{UP}.weight_scale", lambda t: t.roll(1, 0)), "weights.error", UP, "relative error"),
    "two groups": (at(f"{UP}.weight_scale", flip_bits((0, 1), (99, 2))), "weights.groups", UP, "2 of 768 groups"),
    "scales of zero": (at(f"{UP}.weight_scale", lambda t: t * 0), "weights.scales", UP, "768 that are 0"),
    "scales a little off": (at(f"{UP}.weight_scale", lambda t: t * 1.125), "weights.fit", UP, "other scales"),
    "scale in integers": (at(f"{UP}.weight_scale", lambda t: t.int()), "weights.form", UP, "expected a float type"),
    "embedding in fp32": (
        at("model.language_model.embed_tokens.weight", lambda t: t.float()),
        "weights.kept",
        "model.language_model.embed_tokens.weight",
        "F32",
    ),
    "one bit of a tower": (
        at("model.vision_tower.std_bias", lambda t: (t.view(torch.int16) ^ 1).view(torch.bfloat16)),
        "weights.kept",
        "model.vision_tower.std_bias",
        "64 of 64 values differ",
    ),
}


@pytest.mark.parametrize("damage", FURTHER)
def test_further_damages(damage: str, packed_moe: Path, moe: Path, tmp_path: Path) -> None:
    change, code, subject, text = FURTHER[damage]
    out = Path(shutil.copytree(packed_moe, tmp_path / "bad"))
    rewrite(out, change)
    found = bad(check(out, moe))
    assert {one.subject for one in found} == {subject}
    assert [text in one.found for one in found if one.code == code and one.severity is Severity.FAIL] == [True]


def test_a_square_weight_packed_transposed_is_recognized(tmp_path: Path, dense: Path) -> None:
    """Scales belong to the transposed weight, too, when a writer packs that."""
    source = Path(shutil.copytree(dense, tmp_path / "source"))
    rewrite(source, at(f"{SQUARE}.weight", lambda t: t.T.contiguous()))
    quantized(source, tmp_path / "out")
    (found,) = bad(check(tmp_path / "out", dense))
    assert found.subject == SQUARE
    assert "it is transposed" in found.found


def test_shifted_scales_of_wide_groups_are_found_by_their_fit(tmp_path: Path, dense: Path) -> None:
    """Neighbours of 128 have scales so alike that the error stays below every limit."""
    quantized(dense, tmp_path / "out", group_size=128, method="minmax")
    rewrite(tmp_path / "out", at(f"{LAYER}.mlp.down_proj.weight_scale", lambda t: t.roll(1, -1)))
    found = bad(check(tmp_path / "out", dense))
    assert {one.subject for one in found} == {f"{LAYER}.mlp.down_proj"}
    assert any(one.severity is Severity.FAIL for one in found)


def test_one_of_many_alike_that_is_much_worse_is_a_note(packed_moe: Path, moe: Path, tmp_path: Path) -> None:
    coarse = tmp_path / "coarse"
    quantized(moe, coarse, method="minmax")
    module, donor = f"{LAYER}.experts.3.up_proj", held_by(coarse)
    out = Path(shutil.copytree(packed_moe, tmp_path / "out"))
    rewrite(out, lambda held: held.update({f"{module}.{part}": donor[f"{module}.{part}"] for part in PARTS}))
    assert bad(check(out, moe)) == []
    (found,) = (one for one in check(out, moe) if one.code == "weights.outlier" and one.severity is Severity.INFO)
    assert (found.subject, found.remedy) == (module, "")


def test_zero_points_are_taken_off(packed_moe: Path, moe: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed_moe, tmp_path / "out"))

    def move(held: Tensors) -> None:
        """Every code of one module one up, and so its zero point; codes at the end make room first."""
        codes = (nibbles(held[f"{UP}.weight_packed"]) - 8).clamp(max=6) + 1
        held[f"{UP}.weight_packed"] = words(codes + 8)
        ones = torch.ones_like(held[f"{UP}.weight_scale"], dtype=torch.int8)
        held[f"{UP}.weight_zero_point"] = pack_to_int32(ones, 4, packed_dim=0)

    rewrite(out, move)
    assert {one.severity for one in bad(check(out, moe))} <= {Severity.WARN}
    rewrite(out, at(f"{UP}.weight_zero_point", torch.zeros_like))
    assert any(one.subject == UP and one.severity is Severity.FAIL for one in bad(check(out, moe)))


def test_experts_in_one_packed_tensor(packed_moe: Path, moe: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed_moe, tmp_path / "out"))
    stem = f"{LAYER}.experts"

    def fuse(held: Tensors) -> None:
        for part, suffix in (("weight_packed", "packed"), ("weight_scale", "scale")):
            each = {
                kind: [held.pop(f"{stem}.{number}.{kind}_proj.{part}") for number in range(12)]
                for kind in ("gate", "up", "down")
            }
            both = [torch.cat(pair) for pair in zip(each["gate"], each["up"], strict=True)]
            held[f"{stem}.gate_up_proj_{suffix}"] = torch.stack(both)
            held[f"{stem}.down_proj_{suffix}"] = torch.stack(each["down"])

    rewrite(out, fuse)
    findings = check(out, moe)
    assert bad(findings) == []
    assert any(one.subject.startswith("108 experts") for one in findings)

    def swap(held: Tensors) -> None:
        scale = held[f"{stem}.gate_up_proj_scale"]
        held[f"{stem}.gate_up_proj_scale"] = scale.index_copy(0, torch.tensor([7]), -scale[7:8])

    rewrite(out, swap)
    assert {one.subject for one in bad(check(out, moe))} == {f"{stem}.7.gate_proj", f"{stem}.7.up_proj"}


def test_another_source_fails_everywhere_and_is_not_explained(packed_moe: Path, tmp_path: Path) -> None:
    other = make(Family.MOE, tmp_path / "other", seed=9)
    found = bad(check(packed_moe, other))
    assert all(one.severity is Severity.FAIL for one in found)
    assert not any("it is the weight of" in one.found for one in found)
    errors = [one for one in found if one.code == "weights.error"]
    assert len(errors) == 10  # one for each projection
    assert errors[-1].count == 36


def test_what_is_missing_is_left_to_the_static_level(packed_moe: Path, moe: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed_moe, tmp_path / "out"))
    rewrite(out, lambda held: [held.pop(f"{UP}.{part}") for part in PARTS])
    assert bad(check(out, moe)) == []


def test_a_quantized_source_is_refused(packed_moe: Path) -> None:
    with pytest.raises((InputError, UnsupportedError), match="quantized"):
        check(packed_moe, packed_moe)


def test_findings_do_not_depend_on_threads_or_pieces(
    packed_moe: Path, moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    expected = check(packed_moe, moe, workers=1)
    assert check(packed_moe, moe, workers=4) == expected
    monkeypatch.setattr(level, "_PIECE", 5000)
    assert [one.code for one in check(packed_moe, moe, workers=3)] == [one.code for one in expected]
    assert torch.get_num_threads() == threads


def test_progress_counts_every_byte_once(packed_moe: Path, moe: Path) -> None:
    class Counter(Progress):
        total = done = 0

        def start(self, total: int, done: int) -> None:
            self.total, self.done = total, done

        def advance(self, nbytes: int, name: str) -> None:
            assert name
            self.done += nbytes

    counter = Counter()
    list(check_weights(Checkpoint.open(packed_moe), Checkpoint.open(moe), progress=counter))
    assert counter.done == counter.total > 1_000_000


@pytest.mark.parametrize(
    ("method", "usual"), [("mse", 1.05), ("minmax", 1.05), ("lattice", 1.05), (None, 4), ("gptq", 4)]
)
def test_a_method_that_is_not_stated_may_err_as_much_as_gptq(method: str | None, usual: float) -> None:
    band = band_of(method)
    assert band.usual == usual
    assert band.fit < band.usual < band.limit


@pytest.mark.parametrize("method", one_in(3, ["minmax", "mse"]))
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_heavy_tails_are_no_fault(method: str, group: int | None, bits: int, tmp_path: Path, dense: Path) -> None:
    """Weights as real ones: a fixed band calls some of them damaged. Student's t, of two degrees of freedom."""
    source = Path(shutil.copytree(dense, tmp_path / "source"))
    generator = torch.Generator().manual_seed(bits)

    def heavy(held: Tensors) -> None:
        for name, tensor in held.items():
            if name.endswith("_proj.weight") and "language_model" in name:
                drawn, tails = (torch.randn(3, *tensor.shape, generator=generator) for _ in range(2))
                student = drawn[0] / tails[:2].square().mean(0).sqrt()
                held[name] = (student * 0.02).to(tensor.dtype)

    for shard in source.glob("*.safetensors"):
        held = load_file(shard)
        heavy(held)
        save_file(held, shard, metadata={"format": "pt"})
    quantized(source, tmp_path / "out", method=method, group_size=group, num_bits=bits)
    found = check(tmp_path / "out", source)
    assert bad(found) == []
    errors = [one for one in found if one.code == "weights.error"]
    assert errors


def test_plain_rounding_is_that_of_compressed_tensors() -> None:
    for bits, group in ((4, 32), (4, 128), (8, 32)):
        source = torch.randn(16, 512, generator=torch.Generator().manual_seed(bits)).bfloat16()
        tile = RowTile(
            words=np.zeros((16, 512 * bits // 32), np.int32),
            scale=np.ones((16, 512 // group), np.float32),
            zeros=np.empty((0, 0), np.float32),
            source=source.view(torch.int16).numpy().view(np.uint16),
            num_bits=bits,
        )
        expected = _minmax_error(source.float().view(-1, group), bits)
        assert measure_tile(tile).plain_relative_error == pytest.approx(expected, rel=1e-4)


def _minmax_error(groups: torch.Tensor, bits: int) -> float:
    top = (1 << (bits - 1)) - 0.5
    scale = (groups.abs().amax(-1, keepdim=True) / top).bfloat16().float()
    codes = (groups / scale).round().clamp(-top - 0.5, top - 0.5)
    return float(((codes * scale - groups) ** 2).sum() / (groups**2).sum())
