"""Check `static.provenance`: references that are nearly the source of a record."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Packed
from helpers.damage import Tensors, edit_config, rewrite
from safetensors.torch import load_file, save_file

from g4convert.checkpoint.directory import Checkpoint
from g4convert.report import Finding, Severity
from g4convert.request import Level, Request
from g4convert.verification.provenance import check_provenance
from g4convert.verification.run import verify
from g4convert.verification.static.stored_reference import describe_source


def provenance(out: Path, reference: Path) -> Finding:
    found = verify(Request(out, reference, Level.STATIC)).findings
    (one,) = (one for one in found if one.code == "static.provenance")
    return one


@pytest.fixture
def tuned(dense: Path, tmp_path: Path) -> Path:
    """The model after a training that moved its Linears by a hundredth, with the same names, sizes and config."""
    copy = Path(shutil.copytree(dense, tmp_path / "tuned"))

    def train(held: Tensors) -> None:
        for name, weight in held.items():
            if name.endswith("_proj.weight"):
                moved = weight.float() + 0.01 * weight.float().std() * torch.randn(weight.shape)
                held[name] = moved.to(weight.dtype)

    rewrite(copy, train)
    return copy


def test_the_output_of_a_base_is_not_its_fine_tunes(dense: Path, packed: Packed, tuned: Path) -> None:
    assert provenance(packed("dense"), dense).severity is Severity.PASS
    shutil.copy(dense / "model.safetensors.index.json", tuned)
    found = verify(Request(packed("dense"), tuned, Level.WEIGHTS))
    assert found.exit_code(strict=False) == 1
    (one,) = (one for one in found.findings if one.code == "static.provenance")
    assert one.severity is Severity.FAIL
    assert "other weights of the same names and sizes" in one.found


def test_a_stored_reference_has_the_sample_too(dense: Path, packed: Packed, tuned: Path, tmp_path: Path) -> None:
    asked = Request(packed("dense"), tmp_path / "ref.safetensors", Level.STATIC)
    for source, severity in ((dense, Severity.PASS), (tuned, Severity.FAIL)):
        checkpoint = Checkpoint.open(source)
        facts = {"source": Checkpoint.open(dense).digest(), **describe_source(checkpoint)}
        (found,) = check_provenance(asked, None, facts)
        assert found.severity is severity
    (found,) = check_provenance(asked, None, {"source": Checkpoint.open(dense).digest()})
    assert found.severity is Severity.PASS  # of before: no sample, so the files decide


def test_the_same_weights_saved_anew_are_the_source(dense: Path, packed: Packed, tmp_path: Path) -> None:
    anew = Path(shutil.copytree(dense, tmp_path / "anew"))
    edit_config(anew, lambda config: config.update(transformers_version="5.0.0"))
    assert provenance(packed("dense"), anew).severity is Severity.PASS
    whole = {name: tensor for shard in anew.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    for shard in (*anew.glob("*.safetensors"), anew / "model.safetensors.index.json"):
        shard.unlink(missing_ok=True)
    save_file(whole, anew / "model.safetensors", metadata={"format": "pt"})
    found = provenance(packed("dense"), anew)
    assert (found.severity, found.found[:19]) == (Severity.PASS, "made of these weigh")


def test_a_record_without_a_sample_is_judged_by_its_files(
    dense: Path, packed: Packed, tuned: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(packed("dense"), tmp_path / "out"))
    record = json.loads((out / "g4convert.json").read_text())
    del record["source"]["sample"]
    (out / "g4convert.json").write_text(json.dumps(record))
    assert provenance(out, dense).severity is Severity.PASS
    shutil.copy(dense / "config.json", tuned)
    assert provenance(out, tuned).severity is Severity.PASS
