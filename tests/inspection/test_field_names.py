"""Other names of tensors and classes: which engine reads them."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from helpers.checked import assert_loads_as, checked, dense_out, loaded_values, loads
from helpers.conversions import quantized, stored
from helpers.engine_cases import SPELLINGS
from helpers.grids import two_when_quick
from helpers.rewriting import Tensors, rewritten
from packaging.version import Version

from g4convert.engines.verdicts import Loads
from g4convert.report import Severity

__all__ = ["dense_out"]


@pytest.mark.parametrize(
    "found",
    [
        "gone",
        ["FSDPGemma4ForConditionalGeneration"],
        ["Gemma4Model"],
        ["Gemma4ForCausalLM"],
        ["Gemma4UnifiedForConditionalGeneration"],
        [],
    ],
)
def test_vllm_chooses_by_the_class(found: object, dense_out: Path, tmp_path: Path) -> None:
    result = checked(rewritten(dense_out, tmp_path / "out", dict, architectures=found))
    assert loads(result)["vllm"] is Loads.NO
    assert loads(result)["transformers"] is not Loads.NO
    (remedy,) = {one.remedy for one in result.report.of(Severity.FAIL) if one.code == "static.class"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    config |= json.loads(f"{{{remedy.split('`')[1]}}}")
    shutil.copytree(tmp_path / "out", tmp_path / "mended")
    (tmp_path / "mended/config.json").write_text(json.dumps(config))
    assert loads(checked(tmp_path / "mended"))["vllm"] is not Loads.NO


NAMES = {
    **SPELLINGS,
    "of transformers in memory": lambda name: name.replace(
        "embed_vision.embedding_p", "embed_vision.multimodal_embedder.embedding_p"
    ).replace("vision_embedder.", "embed_vision."),
}
"""Spellings, and the names of the unified family's modules in memory, which Quark stores."""

NEW = Version(transformers.__version__) >= Version("5.23")
"""True where transformers reads a decoder below another `model.`; its contract is that of older releases, too."""


@pytest.mark.parametrize(
    ("family", "names", "read"),
    two_when_quick(
        [
            ("dense", "of vLLM", {"vllm"}),
            ("dense", "of the inner model", {"transformers", "sglang"}),
            ("dense", "doubled", {"transformers"}),
            ("dense", "nested", set()),
            ("dense", "of a text-only model", {"vllm"}),
            ("dense", "compiled", set()),
            ("dense", "of PEFT", set()),
            ("dense", "of FSDP", set()),
            ("dense", "of towers without a wrapper", {"sglang"}),
            ("dense", "of SGLang's towers", {"sglang"}),
            ("unified", "of unified modules", set()),
            ("unified", "of transformers in memory", {"transformers"}),
            ("dense", "of transformers in memory", set()),
            ("unified", "of the inner model", {"transformers", "sglang"}),
            ("text", "of the inner model", {"transformers"}),
            ("text", "of a multimodal model", {"vllm", "sglang"}),
            ("text", "of vLLM", set()),
        ]
    ),
)
def test_each_engine_reads_other_names_than_the_others(
    family: str, names: str, read: set[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Names that transformers reads are loaded here; `make test-engines` asks the loaders of the others."""
    quantized(request.getfixturevalue(family), tmp_path / "good", method="minmax")
    write = NAMES[names]
    out = rewritten(tmp_path / "good", tmp_path / "out", lambda t: {write(name): one for name, one in t.items()})
    found = checked(out)
    wanted = {engine for engine, one in loads(checked(tmp_path / "good")).items() if one is not Loads.NO}
    assert {engine for engine, one in loads(found).items() if one is not Loads.NO} == read & wanted
    assert bool(found.report.of(Severity.FAIL)) is not bool(read & wanted)
    if "transformers" in read or (names == "nested" and NEW):
        assert_loads_as(out, tmp_path / "good")
    else:
        with pytest.raises(AssertionError):
            loaded_values(out)


def test_a_head_of_another_name_is_read_by_transformers(text: Path, tmp_path: Path) -> None:
    quantized(text, tmp_path / "good", method="minmax")
    for name, read in (("model.lm_head.weight", {"transformers"}), ("language_model.lm_head.weight", set[str]())):
        out = rewritten(
            tmp_path / "good",
            tmp_path / name,
            lambda t, n=name: {n if one == "lm_head.weight" else one: w for one, w in t.items()},
        )
        assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == read
        if read:
            assert_loads_as(out, tmp_path / "good")


def test_a_tied_head_of_another_name_stops_vllm(dense: Path, dense_out: Path, tmp_path: Path) -> None:
    for name, stops in (("model.lm_head.weight", True), ("language_model.lm_head.weight", False)):
        table = stored(dense)["model.language_model.embed_tokens.weight"]
        found = checked(rewritten(dense_out, tmp_path / name, lambda t, n=name, e=table: {**t, n: e.clone()}))
        assert (loads(found)["vllm"] is Loads.NO) is stops
        assert loads(found)["transformers"] is not Loads.NO
        assert loads(found)["sglang"] is not Loads.NO


def test_an_embedding_that_is_stored_as_its_head_is_tied_by_transformers(dense_out: Path, tmp_path: Path) -> None:
    """The others leave a tied head aside: vLLM 0.33 then stops, and SGLang serves what memory holds."""

    def change(tensors: Tensors) -> Tensors:
        return {"lm_head.weight" if n.endswith("embed_tokens.weight") else n: t for n, t in tensors.items()}

    out = rewritten(dense_out, tmp_path / "out", change)
    found = checked(out)
    assert loads(found) == {"transformers": Loads.YES, "vllm": Loads.NO, "sglang": Loads.NO}
    lines = [problem.line for one in found.verdicts if one.engine != "transformers" for problem in one.problems]
    assert lines
    assert all("stored as its tied head alone, which only transformers reads" in line for line in lines)
    assert_loads_as(out, dense_out)
