"""Every accident that `verify` is for, planted in a good conversion: each fails and is named, the twin passes.

`DISK` are faults of what was written: all `VALUES` of `damage.py` and some of its `STATIC`. They run the levels static
and weights. `PATHS` are faults of the path that runs, planted in the candidate of level logits, on a few probes of the
kinds that show them. What a check says in detail is tested beside it; here is one row for each accident, from one end
to the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.damage import STATIC, VALUES, damaged
from helpers.faults import PATHS, Fault, Written, failures, written
from helpers.grids import one_in, two_when_quick

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import load
from g4convert.progress import Progress
from g4convert.report import LevelResult, Severity
from g4convert.request import Level, Request
from g4convert.verification import profiles
from g4convert.verification.logits.judge import check_logits
from g4convert.verification.logits.trace import Models
from g4convert.verification.probes.suite import make_probes
from g4convert.verification.run import verify

if TYPE_CHECKING:
    from g4convert.forward.probe import Probe

__all__ = ["written"]  # a fixture

LAYER = "model.language_model.layers.0"
FAMILIES = ("moe", "dense", "unified", "e2b", "text")

DISK = (
    *((name, one.family, one.code, one.subject) for name, one in VALUES.items()),
    ("layer_scalar dropped", "dense", "static.tensors", f"{LAYER}.layer_scalar"),
    ("per_expert_scale dropped", "moe", "static.tensors", f"{LAYER}.router.per_expert_scale"),
    ("router packed", "moe", "static.kept", f"{LAYER}.router.proj"),
    ("patch_dense packed", "unified", "static.kept", "model.vision_embedder.patch_dense"),
    ("patch_dense without its prefix", "unified", "static.ignore", "model.vision_embedder.patch_dense"),
    ("tied head not ignored", "dense", "static.lm_head", "lm_head"),
    ("v_proj on a k_eq_v layer", "moe", "static.k_eq_v", "model.language_model.layers.2.self_attn.v_proj.weight"),
    ("lost expert scale", "moe", "static.scale", f"{LAYER}.experts.7.down_proj"),
    ("stale index", "dense", "static.index", f"{LAYER}.mlp.up_proj.weight_scale"),
    ("tokenizer changed", "dense", "static.side_files", "tokenizer.json"),
    ("config key dropped", "dense", "static.config", "text_config.final_logit_softcapping"),
    ("alias dropped", "unified", "static.config", "eoa_token_index"),
    ("transposed packing", "dense", "static.packed", f"{LAYER}.mlp.up_proj"),
    ("wrong group size", "text", "static.scheme", "config_groups.group_0"),
)


@pytest.mark.parametrize(("name", "family", "code", "subject"), two_when_quick(DISK), ids=[row[0] for row in DISK])
def test_a_damaged_checkpoint_fails_and_the_damage_is_named(  # noqa: PLR0913, PLR0917 -- a row and its fixtures
    name: str, family: str, code: str, subject: str, written: Written, tmp_path: Path
) -> None:
    source, good = written(family)
    out = damaged(good, tmp_path / "out", VALUES[name].damage if name in VALUES else STATIC[name])
    found = verify(Request(out, source, Level.WEIGHTS))
    assert found.exit_code(strict=False) == 1
    named = failures(found.findings)
    assert any(subject in one for one in named.get(code, [])), named


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
def test_its_twin_passes(family: str, written: Written) -> None:
    source, out = written(family)
    found = verify(Request(out, source, Level.WEIGHTS))
    assert found.verdict is Severity.PASS, [one.line for one in found.findings if one.severity is not Severity.PASS]
    assert found.levels == (Level.STATIC, Level.WEIGHTS)


def test_values_of_other_levels_are_not_reached_where_files_are_broken(written: Written, tmp_path: Path) -> None:
    source, good = written("dense")
    out = damaged(good, tmp_path / "out", STATIC["cut shard"])
    found = verify(Request(out, source, Level.LOGITS))
    assert found.exit_code(strict=False) == 1
    assert found.levels == (Level.STATIC,)
    stopped = [one.code for one in found.findings if one.severity is Severity.INCONCLUSIVE]
    assert stopped == ["weights.stopped", "logits.stopped"]


def test_what_the_strict_loader_refuses_is_not_run(written: Written, tmp_path: Path) -> None:
    source, good = written("dense")
    out = damaged(good, tmp_path / "out", STATIC["layer_scalar dropped"])
    found = verify(Request(out, source, Level.LOGITS))
    assert found.levels == (Level.STATIC, Level.WEIGHTS)
    assert any(f"{LAYER}.layer_scalar" in one for one in failures(found.findings)["logits.load"])
    assert "logits.stopped" in {one.code for one in found.findings}


# ---- the path that runs


@pytest.fixture(scope="module")
def judged(written: Written) -> Callable[..., LevelResult]:
    """Level logits of a family's conversion with a fault in the packed path."""
    right: dict[str, ModelCandidate] = {}
    probes: dict[tuple[str, str], Sequence[Probe]] = {}
    limits = {"loss": profiles.load("w4a16"), "parity": profiles.load("parity")}

    def judge(family: str, kind: str, fault: Fault | None) -> LevelResult:
        source, out = written(family)
        if family not in right:
            right[family] = ModelCandidate(load(out, packed=False))
        if (family, kind) not in probes:
            found = make_probes(right[family].model, source, kinds=("prose", kind), tokens=1)
            found = [one for one in found if one.bucket == kind or kind in {"prose", one.bucket}]
            probes[family, kind] = found[1::2] or found  # of pictures a wide and a padded one
        candidate = ModelCandidate(load(out))
        with torch.no_grad():
            if fault is not None:
                fault(candidate.model)
        models = Models(None, right[family], candidate)
        return check_logits(models, probes[family, kind], progress=Progress(), **limits)

    return judge


@pytest.mark.parametrize(
    ("name", "family", "fault", "kind", "code", "subject"), one_in(3, PATHS), ids=[row[0] for row in PATHS]
)
def test_a_fault_of_the_path_fails_and_is_named(  # noqa: PLR0913, PLR0917 -- a row and its fixtures
    name: str, family: str, fault: Fault, kind: str, code: str, subject: str, judged: Callable[..., LevelResult]
) -> None:
    del name
    named = failures(judged(family, kind, fault).findings)
    assert any(subject in one for one in named.get(f"logits.{code}", [])), named


@pytest.mark.wide
@pytest.mark.parametrize(
    ("family", "kind"),
    one_in(3, sorted({(row[1], row[3]) for row in PATHS})),
    ids=lambda word: str(word).replace(" ", "-"),
)
def test_the_right_path_passes(family: str, kind: str, judged: Callable[..., LevelResult]) -> None:
    found = judged(family, kind, None).findings
    bad = {Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN}
    assert not [(one.code, one.line) for one in found if one.severity in bad]
