"""Level static: every damage is named, with its module, and the undamaged twin is left alone."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.damage import STATIC, config, damaged, ignoring
from helpers.dialect_sources import with_shared_kv
from helpers.grids import one_in, two_when_quick

from g4convert.checkpoint.directory import Checkpoint
from g4convert.demo import Family
from g4convert.errors import InputError, UnsupportedError
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import load_shipped
from g4convert.report import Finding, Severity
from g4convert.verification.static import level
from g4convert.verification.static.level import check_static, open_output

FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO
LAYER = "model.language_model.layers.0"
ANY_LAYER = "model.language_model.layers.*"
TOWER = "model.vision_tower.encoder.layers.*"
Pair = tuple[Path, Path]
Converted = Callable[..., Pair]

# damage, family, then each (code, severity, subject) that must be found and no other one that is FAIL or WARN
Row = tuple[str, str, tuple[tuple[str, Severity, str], ...]]


def row(damage: str, family: str, *found: tuple[str, Severity, str]) -> Row:
    return damage, family, found


ROWS = (
    row("layer_scalar dropped", "dense", ("tensors", FAIL, f"{LAYER}.layer_scalar")),
    row("per_expert_scale dropped", "moe", ("tensors", FAIL, f"{LAYER}.router.per_expert_scale")),
    row("one expert lost", "moe", ("tensors", FAIL, f"{LAYER}.experts.5.up_proj.weight")),
    row("clip limit dropped", "e2b", ("tensors", FAIL, "model.vision_tower.encoder.layers.1.mlp.up_proj.output_max")),
    row("std_bias dropped", "dense", ("tensors", FAIL, "model.vision_tower.std_bias")),
    row("tensor too many", "dense", ("unknown", FAIL, f"{LAYER}.mlp.gate_proj.extra")),
    row("plain beside packed", "dense", ("duplicate", FAIL, f"{LAYER}.mlp.up_proj.weight")),
    row("name of another program", "dense", ("names", WARN, "language_model.model.norm.weight")),
    row("v_proj on a k_eq_v layer", "moe", ("k_eq_v", FAIL, "model.language_model.layers.2.self_attn.v_proj.weight")),
    row(
        "half of shared keys and values",
        "e2b with shared",
        ("tensors", FAIL, "model.language_model.layers.4.self_attn.v_proj.weight"),
    ),
    row(
        "shared keys unlike their queries",
        "e2b with shared",
        ("kv_shared", WARN, "model.language_model.layers.4.self_attn"),
        ("ignore", WARN, "model.language_model.layers.4.self_attn.k_proj"),
    ),
    row("router packed", "moe", ("kept", FAIL, f"{LAYER}.router.proj"), ("ignore", FAIL, f"{LAYER}.router.proj")),
    row(
        "patch_dense packed",
        "unified",
        ("kept", FAIL, "model.vision_embedder.patch_dense"),
        ("ignore", FAIL, "model.vision_embedder.patch_dense"),
    ),
    row(
        "embedding packed",
        "dense",
        ("kept", FAIL, "model.language_model.embed_tokens"),
        ("ignore", FAIL, "model.language_model.embed_tokens"),
    ),
    row(
        "tower packed",
        "dense",
        ("kept", FAIL, "model.vision_tower.patch_embedder.input_proj"),
        ("ignore", FAIL, "model.vision_tower.patch_embedder.input_proj"),
    ),
    row("embedding in fp32", "dense", ("dtype", FAIL, "model.language_model.embed_tokens.weight")),
    row("norm of another shape", "dense", ("shape", FAIL, f"{LAYER}.input_layernorm.weight")),
    row("lost words", "dense", ("packed", FAIL, f"{LAYER}.mlp.up_proj")),
    row("lost scale", "dense", ("scale", FAIL, f"{LAYER}.mlp.up_proj")),
    row("lost expert scale", "moe", ("scale", FAIL, f"{LAYER}.experts.7.down_proj")),
    row("lost shape", "dense", ("weight_shape", FAIL, f"{LAYER}.mlp.up_proj")),
    row("wrong shape values", "dense", ("weight_shape", FAIL, f"{LAYER}.mlp.up_proj")),
    row("transposed packing", "dense", ("packed", FAIL, f"{LAYER}.mlp.up_proj")),
    row("words in int64", "dense", ("packed", FAIL, f"{LAYER}.mlp.up_proj")),
    row(
        "scale of another group size",
        "dense",
        ("scheme", FAIL, f"{LAYER}.mlp.up_proj"),
        ("fused", FAIL, f"{LAYER}.mlp"),
    ),
    row("scale of another layer", "dense", ("scale", FAIL, f"{LAYER}.mlp.up_proj")),
    row("scale in integers", "dense", ("scale", FAIL, f"{LAYER}.mlp.up_proj")),
    row("gate plain", "dense", ("fused", FAIL, f"{LAYER}.mlp"), ("ignore", FAIL, f"{LAYER}.mlp.gate_proj")),
    row(
        "one expert plain",
        "moe",
        ("fused", FAIL, f"{LAYER}.experts"),
        ("ignore", FAIL, f"{LAYER}.experts.3.up_proj"),
    ),
    row("fused packed experts", "moe", ("experts", WARN, f"{LAYER}.experts.down_proj")),
    row("config key dropped", "dense", ("config", FAIL, "text_config.final_logit_softcapping")),
    row("config value changed", "dense", ("config", FAIL, "text_config.sliding_window")),
    row("alias dropped", "unified", ("config", FAIL, "eoa_token_index")),
    row(
        "architecture changed",
        "dense",
        ("config", FAIL, "text_config.intermediate_size"),
        ("architecture", FAIL, "text.layers.*.intermediate_size"),
    ),
    row("model type changed", "dense", ("config", FAIL, "model_type"), ("architecture", FAIL, "config.json")),
    row("rotation factor added", "dense", ("config", FAIL, "text_config.rope_parameters.full_attention.factor")),
    row("attention made acausal", "dense", ("config", FAIL, "text_config.is_causal")),
    row("softcap of attention added", "dense", ("config", FAIL, "text_config.attn_logit_softcapping")),
    row(
        "one layer of another window",
        "dense",
        ("architecture", FAIL, "text_config.per_layer_config.0.sliding_window"),
    ),
    row("image token of another model", "unified", ("config", FAIL, "image_token_id")),
    row("video token of another model", "dense", ("config", FAIL, "video_token_id")),
    row("sound token of another model", "e2b", ("config", FAIL, "audio_token_id")),
    row("pooling of another size", "dense", ("config", FAIL, "vision_config.pooling_kernel_size")),
    row("padding token lost", "dense", ("config", FAIL, "text_config.pad_token_id")),
    row(
        "untied without a head",
        "dense",
        ("config", FAIL, "tie_word_embeddings"),
        ("config", FAIL, "text_config.tie_word_embeddings"),
        ("architecture", FAIL, "tied_embeddings"),
    ),
    row("packed head of a tied model", "dense", ("kept", FAIL, "lm_head")),
    row("inputs in FP8", "dense", ("scheme", FAIL, "config_groups.group_0")),
    row("order of columns that says nothing", "dense", ("scheme", WARN, f"{LAYER}.mlp.up_proj")),
    row("another order of columns", "dense", ("scheme", FAIL, f"{LAYER}.mlp.up_proj")),
    row("tensor in two shards", "dense", ("files", FAIL, f"{LAYER}.layer_scalar")),
    row("no quantization_config", "dense", ("quantization_config", FAIL, "quantization_config")),
    row("wrong group size", "text", ("scheme", FAIL, "config_groups.group_0")),
    row("wrong bits", "text", ("scheme", FAIL, "config_groups.group_0")),
    row("activation order", "dense", ("scheme", FAIL, "config_groups.group_0")),
    row("tied head not ignored", "dense", ("lm_head", FAIL, "lm_head")),
    row("router not ignored", "moe", ("ignore", FAIL, f"{ANY_LAYER}.router.proj")),
    row("patch_dense without its prefix", "unified", ("ignore", FAIL, "model.vision_embedder.patch_dense")),
    row("packed, but ignored", "dense", ("ignore", FAIL, f"{ANY_LAYER}.mlp.down_proj")),
    row("module names of transformers only", "unified", ("ignore", FAIL, "model.vision_embedder.patch_dense")),
    row(
        "dead entry",
        "unified",
        ("dead_entry", WARN, "ignore: re:vision_embeder.*"),
    ),
    row("broken pattern", "dense", ("ignore", FAIL, "re:.*(tower")),
    row("cut shard", "dense", ("files", FAIL, "model-00001-of-00001.safetensors")),
    row("overlapping tensors", "dense", ("files", FAIL, "model-00001-of-00001.safetensors")),
    row("stale index", "dense", ("index", FAIL, f"{LAYER}.mlp.up_proj.weight_scale")),
    row("wrong total size", "dense", ("total_size", WARN, "model.safetensors.index.json")),
    row("unfinished", "dense", ("files", FAIL, "journal.jsonl")),
    row("stray shard", "dense", ("stray", WARN, "model-00009-of-00009.safetensors")),
    row("tokenizer changed", "dense", ("side_files", FAIL, "tokenizer.json")),
    row("tokenizer lost", "dense", ("side_files", FAIL, "tokenizer.json")),
    row("chat template changed", "dense", ("side_files", FAIL, "chat_template.jinja")),
    row("other special tokens", "dense", ("side_files", FAIL, "special_tokens_map.json")),
    row("temperature changed", "dense", ("side_files", FAIL, "generation_config.json")),
    row("generation config written anew", "dense", ("side_files", WARN, "generation_config.json")),
)
SEEN_WITHOUT_SOURCE = {
    *("layer_scalar dropped", "one expert lost", "router packed", "patch_dense packed", "lost scale", "gate plain"),
    *("transposed packing", "wrong group size", "tied head not ignored", "patch_dense without its prefix"),
    *("stale index", "v_proj on a k_eq_v layer", "norm of another shape", "fused packed experts", "lost words"),
    *("per_expert_scale dropped", "no quantization_config", "shared keys unlike their queries"),
}


@pytest.fixture(scope="session")
def written(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The source of a family and what a recipe makes of it, made once."""
    root = tmp_path_factory.mktemp("written")
    made: dict[Path, Pair] = {}

    def get(family: str, recipe: str = DEFAULT, **options: object) -> Pair:
        out = root / f"{family}-{recipe}{'-'.join(map(str, options.values()))}"
        if out not in made:
            bare, _, shared = family.partition(" with ")
            source = checkpoints(bare)
            if shared:
                source, options = with_shared_kv(source, root / f"{family}-source"), {"kv_shared": "keep"}
            quantized(source, out, recipe, **options)
            made[out] = source, out
        return made[out]

    return get


def bad(findings: list[Finding]) -> set[tuple[str, Severity, str]]:
    worse = {FAIL, WARN, Severity.INCONCLUSIVE}
    return {(one.code.removeprefix("static."), one.severity, one.subject) for one in findings if one.severity in worse}


def checked(output: Path, source: Path | None, **options: object) -> list[Finding]:
    """The findings of level static for directories."""
    original = None if source is None else Checkpoint.open(source)
    match open_output(output):
        case Checkpoint() as out:
            return [*check_static(out, original, **options)]  # type: ignore[arg-type]
        case broken:
            return [*broken]


def made_for(family: str, recipe: str) -> bool:
    if recipe == "w4a16-experts-only":
        return family == "moe"
    if recipe == "w4a16-g128":
        return family != "moe"
    return recipe != "text-only" or "assistant" not in family


@pytest.mark.parametrize("damage", ["missing", "other", "none"])
def test_the_tokenizer_of_a_drafter_is_only_warned_of(written: Converted, damage: str, tmp_path: Path) -> None:
    """Engines take that of its target."""
    source, packed = written("assistant", "w4a16-g32", assistant="pack")
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    if damage == "missing":
        (out / "tokenizer.json").unlink()
    else:
        (out / "tokenizer.json").write_text("{}" if damage == "other" else "{")
    assert bad(checked(out, source)) == {("side_files", WARN, "tokenizer.json")}


PROOFS = {"static.class", *re.findall(r"\"(static\.\w+)\"(?:: \(|\] = )", Path(level.__file__).read_text())}
"""Codes of the passes of a sound output: the `proofs` of level.py, and one that passes on its own."""
OF_A_SOURCE = {"static.architecture", "static.config", "static.side_files"}


@pytest.mark.parametrize(
    "recipe",
    one_in(5, sorted(name for name, one in load_shipped().items() if not one.is_calibrated and not one.bits)),
)
@pytest.mark.parametrize("family", two_when_quick([family.value for family in Family]))
def test_what_was_just_written_has_nothing_to_warn_of(written: Converted, family: str, recipe: str) -> None:
    if not made_for(family, recipe):
        return
    options = {"assistant": "pack"} if "assistant" in family else {}
    source, out = written(family, recipe, **options)
    for original in (source, None):
        findings = checked(out, original)
        assert bad(findings) == set()
        passed = [one.code for one in findings if one.severity is Severity.PASS and "tensor_parallel" not in one.code]
        assert sorted(passed) == sorted(PROOFS if original else PROOFS - OF_A_SOURCE)


@pytest.mark.parametrize(("family", "recipe"), [("text", "w4a16-g32-head8"), ("e2b", "w4a16-g32-tables8")])
def test_a_packed_table_is_a_warning_only_where_no_recipe_asked_for_it(
    written: Converted, family: str, recipe: str, tmp_path: Path
) -> None:
    source, out = written(family, recipe)
    assert bad(checked(out, source)) == set()
    assert any(one.code == "static.kept" and "vLLM 0.33 reads it" in one.found for one in checked(out, source))
    other = shutil.copytree(out, tmp_path / "other")
    made = json.loads((other / "g4convert.json").read_text())
    made["recipe"] |= {"bits": {}, "rules": [{"role": ["lm_head"]}, 7]}
    (other / "g4convert.json").write_text(json.dumps(made))
    assert {(code, severity) for code, severity, _ in bad(checked(other, source))} == {("kept", WARN)}


def test_an_assistant_that_is_kept_has_nothing_to_warn_of(written: Converted) -> None:
    source, out = written("assistant")
    assert bad(checked(out, source)) == set()


@pytest.mark.parametrize(("damage", "family", "expected"), ROWS, ids=[f"{name}-{family}" for name, family, _ in ROWS])
def test_a_damage_is_named_with_its_module(
    written: Converted, tmp_path: Path, damage: str, family: str, expected: tuple[tuple[str, Severity, str], ...]
) -> None:
    source, whole = written(family)
    out = damaged(whole, tmp_path / "out", STATIC[damage])
    found = bad(checked(out, source))
    assert found == set(expected)
    if damage in SEEN_WITHOUT_SOURCE:
        assert set(expected) & bad(checked(out, None))
    assert bad(checked(whole, source)) == set()


def test_every_damage_has_a_row_or_a_test() -> None:
    elsewhere = {
        "another quant_method",
        "declared asymmetric",
        "anchored pattern",
        "parent name",
        "tower by the names of the files",
        "entry of another Gemma 4",
        "target names nothing packed",
        "file too many",
    }
    assert {name for name, _, _ in ROWS} | elsewhere == set(STATIC)


def test_what_differs_and_what_is_right_stand_apart(written: Converted, tmp_path: Path) -> None:
    findings = findings_of(written, tmp_path / "head", "dense", "packed head of a tied model")
    (head,) = [one for one in findings if one.code == "static.kept" and one.severity is FAIL]
    assert head.found == "packed, and no model reads it: the head is the embedding"
    (twice,) = findings_of(written, tmp_path / "twice", "dense", "tensor in two shards")
    assert twice.expected == "in one shard"
    assert twice.remedy == "download the model again, or save it again with `save_pretrained`"


def test_a_value_that_no_class_takes_is_told_with_the_right_kind(written: Converted, tmp_path: Path) -> None:
    source, whole = written("dense")
    odd = config(lambda config: config["text_config"].update(use_cache=1))
    findings = checked(damaged(whole, tmp_path / "out", odd), source)
    (one,) = [one for one in findings if one.code == "static.architecture"]
    assert (one.subject, one.found, one.expected) == ("text_config.use_cache", "1", "true or false")


def findings_of(written: Converted, tmp_path: Path, family: str, damage: str, **options: object) -> list[Finding]:
    source, whole = written(family)
    return checked(damaged(whole, tmp_path / "out", STATIC[damage]), source, **options)  # type: ignore[arg-type]


def test_another_method_is_no_compressed_tensors(written: Converted, tmp_path: Path) -> None:
    found = bad(findings_of(written, tmp_path, "text", "another quant_method"))
    assert ("quantization_config", FAIL, "quantization_config") in found


def test_a_scheme_without_zero_points_is_not_asymmetric(written: Converted, tmp_path: Path) -> None:
    found = bad(findings_of(written, tmp_path, "dense", "declared asymmetric"))
    assert found == {("scheme", severity, "config_groups.group_0") for severity in (WARN, FAIL)}


def test_what_is_stored_in_another_way_is_counted(written: Converted, tmp_path: Path) -> None:
    wrong = [one for one in findings_of(written, tmp_path, "text", "wrong group size") if one.severity is FAIL]
    assert [(one.code, one.subject) for one in wrong] == [("static.scheme", "config_groups.group_0")]
    assert wrong[0].told.startswith("group_size 64 in the config, 32 stored (all 28 modules, first model.layers.0.")


def test_an_anchored_pattern_holds_in_transformers_and_not_in_vllm(written: Converted, tmp_path: Path) -> None:
    findings = findings_of(written, tmp_path, "dense", "anchored pattern")
    assert {one.found.partition(" (")[0] for one in findings if one.severity is FAIL} == {
        "plain, although targeted and not ignored, by the names of vllm"
    }
    only = findings_of(written, tmp_path / "again", "dense", "anchored pattern", engines=("transformers",))
    assert {severity for _, severity, _ in bad(only)} == {WARN}


def test_the_name_of_a_part_ignores_nothing(written: Converted, tmp_path: Path) -> None:
    findings = findings_of(written, tmp_path, "dense", "parent name")
    assert ("dead_entry", WARN, "ignore: model.vision_tower") in bad(findings)
    assert ("ignore", FAIL, f"{TOWER}.mlp.up_proj.linear") in bad(findings)


def test_sglang_alone_misses_the_fused_tower_and_warns_unless_required(written: Converted, tmp_path: Path) -> None:
    found = bad(findings_of(written, tmp_path, "dense", "tower by the names of the files"))
    fused = {f"self_attn.{part}_proj" for part in "qkv"} | {"mlp.gate_proj", "mlp.up_proj"}
    assert found == {("ignore", WARN, f"{TOWER}.{part}.linear") for part in fused}
    name = "tower by the names of the files"
    required = findings_of(written, tmp_path / "again", "dense", name, engines=("transformers", "vllm", "sglang"))
    assert {severity for _, severity, _ in bad(required)} == {FAIL}


def test_names_of_transformers_load_in_transformers(written: Converted, tmp_path: Path) -> None:
    name = "module names of transformers only"
    only = bad(findings_of(written, tmp_path, "unified", name, engines=("transformers",)))
    assert only == {("ignore", WARN, "model.vision_embedder.patch_dense")}


def test_entries_for_other_variants_are_only_mentioned(written: Converted, tmp_path: Path) -> None:
    findings = findings_of(written, tmp_path, "dense", "entry of another Gemma 4")
    assert bad(findings) == set()
    assert "ignore: re:.*audio_tower.*" in {one.subject for one in findings if one.severity is INFO}


def test_packed_modules_that_no_target_names(written: Converted, tmp_path: Path) -> None:
    found = bad(findings_of(written, tmp_path, "dense", "target names nothing packed"))
    assert {subject for code, _, subject in found if code == "ignore"} == {
        f"{ANY_LAYER}.mlp.{part}_proj" for part in ("gate", "up", "down")
    }


def test_files_too_many_are_mentioned(written: Converted, tmp_path: Path) -> None:
    findings = findings_of(written, tmp_path, "dense", "file too many")
    assert bad(findings) == set()
    assert ("notes.txt", INFO) in {(one.subject, one.severity) for one in findings}


def test_plain_names_must_name_the_v_proj_that_is_not_there(written: Converted, tmp_path: Path) -> None:
    """Attention kept by whole names: engines look up q, k and v of every layer."""
    source, whole = written("dense", "w4a16-mlp-only")
    names = [
        f"model.language_model.layers.{n}.self_attn.{part}_proj" for n in range(4) for part in ("q", "k", "v", "o")
    ]
    for phantom in (True, False):
        listed = [name for name in names if phantom or "v_proj" not in name or ".0." in name or ".2." in name]
        kept = ignoring(lambda old, listed=listed: [*(e for e in old if "self_attn" not in e), *listed])
        findings = checked(damaged(whole, tmp_path / f"{phantom}", kept), source)
        subjects = {one.subject for one in findings if one.code == "static.fused_names" and one.severity is FAIL}
        assert subjects == (set() if phantom else {f"{ANY_LAYER}.self_attn"})


def test_a_single_file_without_an_index_is_a_checkpoint(written: Converted, tmp_path: Path) -> None:
    source, whole = written("dense")
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "model.safetensors.index.json").unlink()
    (out / "model-00001-of-00001.safetensors").rename(out / "model.safetensors")
    findings = checked(out, source)
    assert bad(findings) == set()
    assert "static.index" not in {one.code for one in findings}


def test_tensor_parallel_names_what_does_not_fit(written: Converted) -> None:
    source, out = written("moe")
    findings = {one.subject: one for one in checked(out, source, tp=(1, 2, 4)) if "parallel" in one.code}
    assert findings["tensor parallel 2"].severity is Severity.PASS
    assert findings["tensor parallel 4"].severity is INFO
    assert "experts' down_proj: 192 inputs in 6 groups" in findings["tensor parallel 4"].found


def test_what_is_left_out_is_listed_with_its_reason(written: Converted) -> None:
    source, out = written("dense", "text-only")
    dropped = [one for one in checked(out, source) if one.code == "static.dropped"]
    assert [one.expected for one in dropped] == ["not part of a text-only checkpoint"]


@pytest.mark.parametrize("family", ["unified", "unified_text"])
def test_a_unified_decoder_alone_is_the_sources_under_either_model_type(
    family: str, written: Converted, tmp_path: Path
) -> None:
    """An earlier release wrote `Gemma4UnifiedForCausalLM`, which serving engines do not have."""
    source, out = written(family, "text-only")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "gemma4_text"
    earlier = Path(shutil.copytree(out, tmp_path / "earlier"))
    named = {"model_type": "gemma4_unified_text", "architectures": ["Gemma4UnifiedForCausalLM"]}
    (earlier / "config.json").write_text(json.dumps(config | named))
    for one in (out, earlier):
        assert not [found for found in checked(one, source) if found.severity in {Severity.FAIL, Severity.WARN}]


Section = dict[str, Any]


def without_weights(section: Section) -> None:
    section["config_groups"]["group_0"]["weights"] = None


def frozen(section: Section) -> None:
    section["quantization_status"] = "frozen"


def activations_out(section: Section) -> None:
    section["config_groups"]["group_0"]["output_activations"] = {"num_bits": 8}


PLACES = {"quantization_config": None, "compression_config": FAIL, "text_config.quantization_config": WARN}
"""Places of the section, and the severity to transformers and vLLM."""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_weights, ("scheme", FAIL, "config_groups.group_0")),
        (frozen, ("quantization_config", FAIL, "quantization_status")),
        (activations_out, ("scheme", FAIL, "config_groups.group_0")),
        (lambda _: None, None),
    ],
)
def test_a_section_that_no_loader_reads_fails(
    written: Converted,
    tmp_path: Path,
    place: str,
    change: Callable[[Section], None],
    expected: tuple[str, Severity, str] | None,
) -> None:
    _, whole = written("dense")
    out = shutil.copytree(whole, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    section = config.pop("quantization_config")
    change(section)
    holder = config["text_config"] if place.startswith("text_config.") else config
    holder[place.rpartition(".")[2]] = section
    (out / "config.json").write_text(json.dumps(config))
    misplaced = {("quantization_config", PLACES[place], place)} if PLACES[place] else set()
    assert bad(checked(out, None)) == misplaced | ({expected} if expected else set())
    only = bad(checked(out, None, engines=("vllm",)))
    of_others = {"quantization_status", place}
    assert all((severity is WARN) == (subject in of_others) for _, severity, subject in only)


def test_no_checkpoint_at_all_is_an_error(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        checked(tmp_path / "none", dense)
    (tmp_path / "ref.safetensors").touch()
    with pytest.raises(InputError, match="is a file") as swapped:
        checked(tmp_path / "ref.safetensors", dense)
    assert "a stored reference follows --reference" in swapped.value.hint
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    shutil.copy(dense / "config.json", tmp_path / "gguf")
    with pytest.raises(UnsupportedError, match="GGUF"):
        checked(tmp_path / "gguf", dense)


def test_a_source_that_is_none_is_an_error(written: Converted, tmp_path: Path) -> None:
    _, out = written("dense")
    with pytest.raises(UnsupportedError, match="already quantized"):
        checked(out, out)
    with pytest.raises(InputError):
        checked(out, tmp_path)


def test_static_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, g4convert.verification.static.level as _\n"
        "print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
