"""Plans: total, independent of order, and what they are for the released sizes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import golden
from helpers.grids import two_when_quick
from helpers.headers import opened, planned
from helpers.released_configs import FAMILIES, RELEASED, Config, released, small, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from g4convert.checkpoint.source import Source
from g4convert.engines.verdicts import TENSOR_PARALLEL
from g4convert.errors import G4Error, InputError, UnsupportedError, UsageError
from g4convert.gemma4 import Architecture, Role
from g4convert.planning.gate import Outlook
from g4convert.planning.layout import lay_out
from g4convert.planning.plan import Copy, Drop, Plan, Quantize
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.report import PlanReport
from g4convert.planning.sizes import add_up_sizes
from g4convert.planning.steps import make_plan
from g4convert.tensors import DType, TensorInfo

RECIPES = sorted(load_shipped())
REFUSED = {
    ("26B-A4B", "w4a16-g128"),
    ("26B-A4B", "w4a16-g128-gptq"),
    *((family, "w4a16-experts-only") for family in FAMILIES if family != "26B-A4B"),
    *((family, "w4a16-g32-tables8") for family in FAMILIES if family != "E2B"),
    *((family, recipe) for family in ("assistant", "unified assistant") for recipe in ("text-only", "w4a16-g32-head8")),
}
"""Recipes that cannot be: sizes that do not divide, no experts, no table, a drafter without its decoder."""


def sources(plan: Plan) -> Counter[tuple[str, int]]:
    """Every source byte range a plan reads or drops, in bytes."""
    read: Counter[tuple[str, int]] = Counter()
    for step in plan.steps:
        match step:
            case Copy():
                for segment in step.segments:
                    read[segment.source, segment.end - segment.begin] += segment.end - segment.begin
            case Quantize():
                segment = step.weight.segment
                read[segment.source, segment.end - segment.begin] += segment.end - segment.begin
            case Drop():
                read[step.source.name, step.source.nbytes] += step.source.nbytes
    return read


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_source_byte_is_used_once(family: str, recipe: str) -> None:
    config = FAMILIES[family]
    try:
        plan = planned(config, recipe)
    except UsageError as error:
        may_misfit = recipe.startswith("w4a16-g128") or (family, recipe) in REFUSED
        assert may_misfit or "has no text-only form" in error.message  # noqa: PT017 -- the others must be planned
        return
    used: Counter[str] = Counter()
    for (source, _), nbytes in sources(plan).items():
        used[source] += nbytes
    if not plan.architecture.tied_embeddings and Architecture.from_config(config).tied_embeddings:
        table = next(weight for weight in plan.inventory.weights if weight.role is Role.EMBEDDING)
        used[table.name] -= table.info.nbytes  # read a second time, for the head
    assert used == {info.name: info.nbytes for info in stored(Architecture.from_config(config)).values()}
    assert sum(row.before for row in add_up_sizes(plan)) == used.total()  # a table that becomes the head, too, once


@pytest.mark.parametrize("family", FAMILIES)
def test_output_names_are_unique(family: str) -> None:
    plan = planned(FAMILIES[family], assistant="pack")
    names = [info.name for step in plan.quantized for info in step.outputs]
    names += [copy.target.name for copy in plan.copied]
    assert len(set(names)) == len(names)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_source_does_not_matter(data: st.DataObject) -> None:
    config = FAMILIES[data.draw(st.sampled_from(sorted(FAMILIES)))]
    tensors = list(stored(Architecture.from_config(config)).values())
    shuffled = data.draw(st.permutations(tensors))
    recipe = load().recipe
    assert make_plan(opened(config, shuffled), recipe).steps == make_plan(opened(config, tensors), recipe).steps


def planned_document(size: str, config: Config, recipe: str) -> dict[str, Any] | str:
    """The JSON of a plan without what depends on the machine; the error of a recipe that does not fit."""
    resolved = load(recipe)
    try:
        plan = make_plan(opened(config), resolved.recipe)
    except G4Error as error:
        return f"exit {error.exit_code}\n{error}"
    outlook = Outlook.of(plan, TENSOR_PARALLEL)
    found = PlanReport.of(Source(Path("model"), size), resolved, plan, lay_out(plan), outlook, workers=1)
    document = found.to_dict(tensors=False)
    del document["estimate"], document["methods"]
    document["engines"] = [f"{one['engine']}, TP {one['tp']}: {one['loads']}" for one in document["engines"]]
    return document


@pytest.mark.golden
@pytest.mark.parametrize("size", two_when_quick(RELEASED))
def test_plans_of_the_released_sizes(size: str) -> None:
    """The default recipe on all layers; of other recipes what they change on a few layers, and as few experts."""
    whole = planned_document(size, released(size), DEFAULT)
    plans = {recipe: planned_document(size, small(size), recipe) for recipe in RECIPES}
    few = plans.pop(DEFAULT)
    assert isinstance(whole, dict)
    assert isinstance(few, dict)
    golden.check(f"plan/{size}.txt", golden.with_changes(whole, plans, few) + "\n")


def test_a_group_size_that_does_not_divide_names_every_layer_and_what_would_fit() -> None:
    with pytest.raises(UsageError) as caught:
        planned(released("26B-A4B"), group_size=128)
    text = str(caught.value)
    assert "3870 layers" in text
    assert "model.language_model.layers.*.experts.*.down_proj: 704 inputs (3840 layers)" in text
    assert "model.language_model.layers.*.mlp.down_proj: 2112 inputs (30 layers)" in text
    assert "--group-size 32 or 64 divides all of them" in text


def test_no_group_size_fits_the_vision_mlp() -> None:
    with pytest.raises(UsageError) as caught:
        planned(released("31B"), pack=["attention", "mlp", "vision_tower"])
    assert "model.vision_tower.encoder.layers.*.mlp.down_proj.linear: 4304 inputs (27 layers)" in str(caught.value)
    assert "none of 32, 64, 128 divides 4304" in caught.value.hint


def test_per_channel_divides_everything() -> None:
    plan = planned(released("26B-A4B"), group_size="channel")
    assert {step.scale.shape[1] for step in plan.quantized} == {1}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_parts_that_engines_build_plain_stay_plain(recipe: str) -> None:
    never = {
        Role.ROUTER,
        Role.EMBEDDING,
        Role.PLE_EMBEDDING,
        Role.LM_HEAD,
        Role.NORM,
        Role.SCALAR,
        Role.CLIP,
        Role.VISION_TOWER,
        Role.AUDIO_TOWER,
        Role.EMBEDDER,
        Role.DRAFTER,
    }
    never -= {Role(role.value) for role in load(recipe).recipe.bits}
    for family in FAMILIES.values():
        try:
            plan = planned(family, recipe)
        except UsageError:
            continue
        assert not never & {step.weight.role for step in plan.quantized}


def test_kept_experts_go_back_into_the_form_that_transformers_reads() -> None:
    config = FAMILIES["26B-A4B"]
    plan = planned(config, pack=["attention", "mlp"])
    fused = {copy.target.name: copy for copy in plan.copied if copy.role is Role.EXPERTS}
    expected = {name: info for name, info in stored(Architecture.from_config(config)).items() if ".experts." in name}
    assert {name: copy.target for name, copy in fused.items()} == expected
    assert all(len(copy.segments) == 1 for copy in fused.values())  # one range: the source is fused already


def test_kept_experts_of_a_source_that_has_them_one_by_one() -> None:
    config = FAMILIES["26B-A4B"]
    tensors = dict(stored(Architecture.from_config(config)))
    for name, info in list(tensors.items()):
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            del tensors[name]
            experts, rows, k = info.shape
            prefix, _, projection = name.rpartition(".")
            names = ("down_proj",) if projection == "down_proj" else ("gate_proj", "up_proj")
            for e in range(experts):
                for one in names:
                    single = f"{prefix}.{e}.{one}.weight"
                    tensors[single] = TensorInfo(single, DType.BF16, (rows // len(names), k))
    plan = make_plan(opened(config, tensors.values()), load(options={"pack": ["mlp"]}).recipe)
    copy = next(c for c in plan.copied if c.target.name.endswith("layers.0.experts.gate_up_proj"))
    assert [s.source.rpartition("experts.")[2] for s in copy.segments] == [
        f"{e}.{projection}_proj.weight" for e in range(3) for projection in ("gate", "up")
    ]


@pytest.mark.parametrize(("choice", "packed"), [("drop", False), ("keep", True)])
def test_keys_and_values_nobody_reads(choice: str, packed: bool) -> None:  # noqa: FBT001
    plan = planned(released("E2B"), kv_shared=choice)
    names = {step.weight.module for step in plan.quantized}
    assert ("model.language_model.layers.20.self_attn.k_proj" in names) is packed
    dropped = {drop.source.name for drop in plan.dropped}
    assert ("model.language_model.layers.20.self_attn.k_norm.weight" in dropped) is not packed


def test_text_only_leaves_the_rest_out_and_renames_the_decoder() -> None:
    plan = planned(released("31B"), "text-only")
    assert all(step.packed.name.startswith("model.layers.") for step in plan.quantized)
    assert {copy.target.name.split(".")[1] for copy in plan.copied} == {"embed_tokens", "layers", "norm"}
    assert {drop.source.name.split(".")[1] for drop in plan.dropped} == {"vision_tower", "embed_vision"}


def test_a_drafter_is_kept_unless_asked_for() -> None:
    assert not planned(FAMILIES["assistant"]).quantized
    plan = planned(FAMILIES["assistant"], assistant="pack")
    assert {step.weight.role for step in plan.quantized} == {Role.ATTENTION, Role.MLP}
    assert planned(FAMILIES["assistant"]).warnings


@pytest.mark.parametrize("section", [{"quant_method": "compressed-tensors"}, {"quant_method": "bitsandbytes"}, "gptq"])
@pytest.mark.parametrize("place", ["quantization_config", "text_config.quantization_config", "compression_config"])
def test_a_stale_quantization_section_is_named_and_the_tensors_decide(section: object, place: str) -> None:
    config = small("31B")
    holder = config["text_config"] if "." in place else config
    holder[place.rpartition(".")[2]] = section
    plan = planned(config)
    assert any(f"a {place} of " in warning and "is replaced" in warning for warning in plan.warnings)
    packed = {name: info for name, info in stored(Architecture.from_config(config)).items() if "up_proj" not in name}
    packed["x.up_proj.weight_packed"] = TensorInfo("x.up_proj.weight_packed", DType.I32, (1,))
    with pytest.raises(UnsupportedError, match=r"^model: already quantized"):  # by the directory's path
        make_plan(opened(config, packed.values()), load().recipe)


def test_limits_of_towers_are_missed_only_where_towers_are_written() -> None:
    """mlx_lm.fuse writes the decoder alone, under a config that still has its audio tower."""
    config = small("E2B")
    architecture = Architecture.from_config(config)
    infos = {name: info for name, info in stored(architecture).items() if "language_model" in name}
    plan = make_plan(opened(config, infos.values()), load("w4a16-g32", {"layout": "text-only"}).recipe)
    assert not [warning for warning in plan.warnings if "limits" in warning]
    clipped = [info for name, info in stored(architecture).items() if not name.endswith(("_min", "_max"))]
    assert any("limits" in warning for warning in make_plan(opened(config, clipped), load().recipe).warnings)


@pytest.mark.parametrize(
    "found", [None, ["FSDPGemma4ForConditionalGeneration"], ["Gemma4Model"], ["Gemma4TextForCausalLM"], "Gemma4", []]
)
def test_a_class_that_is_not_the_models_is_named(found: object) -> None:
    config = small("31B") | {"architectures": found}
    assert any("architectures" in warning for warning in planned(config).warnings)
    right = small("31B") | {"architectures": ["Gemma4ForConditionalGeneration"]}
    assert not any("architectures" in warning for warning in planned(right).warnings)
    assert not any("architectures" in warning for warning in planned(right, layout="text-only").warnings)


@pytest.mark.parametrize("family", ["31B", "E2B", "12B", "text"])
@pytest.mark.parametrize(
    ("tied", "reason"), [(True, "shared with the output head"), (False, "`--bits embedding=8` would save")]
)
def test_only_a_tied_embedding_is_said_to_be_tied(
    tied: bool,  # noqa: FBT001 -- a parameter
    reason: str,
    family: str,
) -> None:
    plan = planned(FAMILIES[family] | {"tie_word_embeddings": tied})
    (embedding,) = (copy for copy in plan.copied if copy.role is Role.EMBEDDING)
    assert reason in embedding.reason
    assert ("head" in embedding.reason) == tied


def test_kept_experts_of_several_dtypes_are_refused_and_packed_ones_are_not() -> None:
    config = small("26B-A4B")
    tensors = {}
    for name, info in stored(Architecture.from_config(config)).items():
        if name.endswith(".experts.down_proj"):
            e, n, k = info.shape
            for number in range(e):
                new = name.replace("down_proj", f"{number}.down_proj.weight")
                tensors[new] = TensorInfo(new, DType.F32 if number else DType.BF16, (n, k))
        else:
            tensors[name] = info
    assert make_plan(opened(config, tensors.values()), load().recipe).quantized
    with pytest.raises(InputError, match="several dtypes") as caught:
        make_plan(opened(config, tensors.values()), load(options={"pack": ["mlp"]}).recipe)
    assert "pack the experts" in caught.value.hint
    assert all(name.endswith("down_proj") for name in caught.value.offenders)


def test_a_qat_export_is_not_already_quantized() -> None:
    plan = planned(FAMILIES["31B"] | {"quantization_config": {"weights": {}}})
    assert any("QAT export" in warning for warning in plan.warnings)


def test_a_recipe_that_packs_nothing_of_this_model() -> None:
    with pytest.raises(UsageError, match="has none of these"):
        planned(released("31B"), "w4a16-experts-only")


def test_missing_experts_are_all_named() -> None:
    config = FAMILIES["26B-A4B"]
    tensors = [info for name, info in stored(Architecture.from_config(config)).items() if ".experts." not in name]
    with pytest.raises(InputError) as caught:
        make_plan(opened(config, tensors), load().recipe)
    assert caught.value.exit_code == 3
    assert sum("experts" in line for line in caught.value.offenders) >= 12
