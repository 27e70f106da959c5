"""`--fix` on checkpoints as people publish them: the result is loaded, with every value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checked import assert_loads_as, broken, checked, codes, loads, section
from helpers.conversions import quantized, stored
from helpers.field import BY_LAYER, by_layer, patterns
from helpers.grids import one_in
from helpers.rewriting import rewritten

from g4convert.engines.verdicts import Loads
from g4convert.inspection.fix import fix
from g4convert.report import Severity


def grouped(said: dict[str, Any], **keys: object) -> dict[str, Any]:
    """The config groups with other keys, and without a format of their own."""
    return {
        name: {"targets": g["targets"], "weights": g["weights"]} | keys for name, g in said["config_groups"].items()
    }


def grouped_otherwise(said: dict[str, Any]) -> dict[str, Any]:
    """The first config group in 8 bits: of two groups with one target, engines take the last."""
    group = next(iter(said["config_groups"].values()))
    return group | {"weights": group["weights"] | {"num_bits": 8}}


DAMAGES: Mapping[str, Any] = {
    "another group size": lambda said: {"quantization_config": broken(said, group_size=64)},
    "another number of bits": lambda said: {"quantization_config": broken(said, num_bits=8)},
    "per row": lambda said: {"quantization_config": broken(said, strategy="channel", group_size=None)},
    "head not ignored": lambda said: {"quantization_config": said | {"ignore": ["re:.*_tower.*", "re:.*embed_.*"]}},
    "towers not ignored": lambda said: {"quantization_config": said | {"ignore": ["lm_head"]}},
    "towers ignored by the names of another release": lambda said: {
        "quantization_config": said | {"ignore": ["re:.*vision_tower.vision_model.*", "re:.*multi_modal.*", "lm_head"]}
    },
    "packed parts ignored": lambda said: {"quantization_config": said | {"ignore": [*said["ignore"], "re:.*mlp.*"]}},
    "a dead pattern": lambda said: {"quantization_config": said | {"ignore": [*said["ignore"], "re:.*mlp.("]}},
    "another name": lambda said: {"quantization_config": "gone", "compression_config": said},
    "nothing said": lambda _: {"quantization_config": "gone"},
    "no config group": lambda said: {"quantization_config": said | {"config_groups": {}}},
    "no target": lambda said: {"quantization_config": said | {"config_groups": grouped(said, targets=[])}},
    "one target in two groups": lambda said: {
        "quantization_config": said | {"config_groups": said["config_groups"] | {"other": grouped_otherwise(said)}}
    },
    "no format": lambda said: {"quantization_config": said | {"format": None, "config_groups": grouped(said)}},
    "format dense": lambda said: {"quantization_config": said | {"format": "dense", "config_groups": grouped(said)}},
    "another format": lambda said: {
        "quantization_config": said | {"format": "int-quantized", "config_groups": grouped(said)}
    },
    "status": lambda said: {"quantization_config": said | {"quantization_status": "frozen"}},
}


@pytest.mark.wide
@pytest.mark.parametrize("family", one_in(2, ["dense", "unified"]))
def test_what_fix_writes_loads_with_every_value(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    good = tmp_path / "good"
    quantized(request.getfixturevalue(family), good, method="minmax")
    for name, damage in DAMAGES.items():
        out = rewritten(good, tmp_path / name, dict, **damage(section(good)))
        assert codes(checked(out)), name
        assert any("--fix" in one.remedy for one in checked(out).report.findings), name
        assert fix(out) is not None
        assert set(loads(checked(out)).values()) == {Loads.YES}, name
        assert_loads_as(out, good)


@pytest.mark.parametrize("family", ["dense", "unified"])
def test_fix_is_offered_for_layers_named_one_by_one_and_works(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    good = by_layer(request.getfixturevalue(family), tmp_path / "good")
    out = rewritten(good, tmp_path / "out", dict, quantization_config=patterns(good, "the mlp"))
    assert any("--fix" in one.remedy for one in checked(out).report.of(Severity.FAIL))
    assert fix(out) is not None
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, good)


@pytest.mark.parametrize("named", BY_LAYER)
def test_fix_writes_what_quantize_would_for_experts_in_two_precisions(named: str, moe: Path, tmp_path: Path) -> None:
    """No release of transformers loads single experts: `make test-vllm` loads what is written here."""
    good = by_layer(moe, tmp_path / "good")
    out = rewritten(good, tmp_path / "out", dict, quantization_config=patterns(good, named))
    assert codes(checked(out)) >= {"static.ignore", "engines.vllm"}
    assert any("--fix" in one.remedy for one in checked(out).report.findings)
    tensors = stored(out)
    assert fix(out) is not None
    assert loads(checked(out))["vllm"] is Loads.YES
    assert section(out)["config_groups"] == section(good)["config_groups"]
    assert section(out)["ignore"] == section(good)["ignore"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in stored(out).items())
