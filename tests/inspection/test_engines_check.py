"""`check`: what engines would make of anybody's checkpoint; `--fix`: the config that its tensors ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import sparse
from helpers.headers import planned, written_config
from helpers.program import g4convert
from helpers.released_configs import assistant, stored

from g4convert.engines.remarks import Topic
from g4convert.engines.verdicts import Loads, Verdict, verdicts
from g4convert.errors import GateError, InputError, UnsupportedError, UsageError
from g4convert.gemma4 import Architecture
from g4convert.inspection.engines import Asked, Checked, check
from g4convert.inspection.fix import Fixed, fix
from g4convert.planning.weights import planned_weights
from g4convert.report import Severity
from g4convert.tensors import DType, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helpers.program import Program

__all__ = ["g4convert"]

Config = dict[str, Any]
TEXT = "model.language_model"
LAYER = f"{TEXT}.layers.0"
STATUS = "quantization_status"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Undamaged quantized checkpoints by size; copy before changing one."""
    root = tmp_path_factory.mktemp("good")

    def get(size: str) -> Path:
        if not (root / size).exists():
            config = sparse.little(size)
            sparse.write_plan(root / size, planned(config), config)
        return root / size

    return get


@pytest.fixture
def copied(good: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy with another config; weights are links, so that nothing large is copied."""

    def get(size: str, change: Callable[[Config], object] = lambda _: None) -> Path:
        source, directory = good(size), tmp_path / size
        directory.mkdir()
        (directory / "model.safetensors").hardlink_to(source / "model.safetensors")
        config = read(source)
        change(config)
        (directory / "config.json").write_text(json.dumps(config, indent=2))
        return directory

    return get


def read(directory: Path) -> Config:
    config: Config = json.loads((directory / "config.json").read_text())
    return config


def state(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir()}


def judged(directory: Path, *engines: str, tps: tuple[int, ...] = ()) -> Checked:
    return check(Asked.of(directory, engines, tps))


def fixed(directory: Path) -> Fixed:
    made = fix(directory)
    assert made is not None
    return made


def exit_code(found: Checked) -> int:
    return found.report.exit_code(strict=False)


def loads(found: Checked, tp: int = 1) -> dict[str, Loads]:
    return {one.engine: one.loads for one in found.verdicts if one.tp == tp}


def ignoring(change: Callable[[list[str]], list[str]]) -> Callable[[Config], None]:
    def changed(config: Config) -> None:
        section = config["quantization_config"]
        section["ignore"] = change(section["ignore"])

    return changed


def without(part: str, *instead: str) -> Callable[[Config], None]:
    return ignoring(lambda entries: [*(entry for entry in entries if part not in entry), *instead])


def scheme(**values: object) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"]["config_groups"]["group_0"]["weights"].update(values)


def left_out(*keys: str) -> Callable[[Config], None]:
    def changed(config: Config) -> None:
        weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
        for key in keys:
            del weights[key]

    return changed


def targets(*entries: str) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"]["config_groups"]["group_0"].update(targets=[*entries])


def whole_group(**values: object) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"]["config_groups"]["group_0"].update(values)


def status(value: str | None) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"].update(quantization_status=value)


def renamed_section(config: Config) -> None:
    config["compression_config"] = config.pop("quantization_config")


def no_weights_below_text(config: Config) -> None:
    whole_group(weights=None)(config)
    config["text_config"]["quantization_config"] = config.pop("quantization_config")


def moved_below_text(config: Config) -> None:
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    config["text_config"]["quantization_config"]["ignore"] = []


def anchored(entries: list[str]) -> list[str]:
    return [entry.replace("re:.*", r"re:^model\.") if "vision_tower" in entry else entry for entry in entries]


TOWER_NAMES = [
    f"model.vision_tower.{name}"
    for name in (
        "patch_embedder.input_proj",
        *(f"encoder.layers.0.self_attn.{part}_proj.linear" for part in "qkvo"),
        *(f"encoder.layers.0.mlp.{part}_proj.linear" for part in ("gate", "up", "down")),
    )
]

# size, what is done to the config, the engine that then fails, a line of its verdict
BROKEN = {
    "patch_dense without its prefix": (
        "12B",
        without("vision_embedder", "patch_dense"),
        "vllm",
        "vision_embedder.patch_dense: plain, although targeted",
    ),
    "tower by its full names": (
        "31B",
        without("vision_tower", *TOWER_NAMES),
        "sglang",
        "self_attn.qkv_proj: plain, although targeted",
    ),
    "pattern from the start": ("31B", ignoring(anchored), "vllm", "vision_tower"),
    "another group size": ("E2B", scheme(group_size=64), "vllm", "group_size 64 in the config, 32 stored"),
    "another number of bits": ("E2B", scheme(num_bits=8), "sglang", "num_bits 8 in the config, 4 stored"),
    "bits left out": (
        "31B",
        left_out("num_bits"),
        "vllm",
        "num_bits 8 in the config (the default, as it is left out), 4",
    ),
    "group size left out": ("31B", left_out("group_size"), "sglang", "which engines refuse: strategy group without a"),
    "group size and strategy left out": (
        "31B",
        left_out("group_size", "strategy"),
        "transformers",
        "strategy tensor in the config (the default, as it is left out), group stored",
    ),
    "null bits": ("31B", scheme(num_bits=None), "vllm", "weights, which engines refuse: num_bits is null"),
    "a key too many": ("31B", scheme(groups=32), "vllm", "'groups' is no key of compressed-tensors"),
    "tied head not ignored": ("31B", without("lm_head"), "transformers", "lm_head: plain, although targeted"),
    "router not ignored": ("26B-A4B", without("router"), "transformers", "router.proj: plain, although targeted"),
    "packed parts ignored": ("31B", without("nothing", r"re:.*\.mlp\..*"), "vllm", "packed, although ignored"),
    "targets by names of the files": (
        "31B",
        targets(r"re:model\.language_model\.layers.*"),
        "vllm",
        "packed, although no target",
    ),
    "no section": ("31B", lambda config: config.pop("quantization_config"), "vllm", "quantization_config: missing"),
    "no weights": ("31B", whole_group(weights=None), "vllm", "config_groups.group_0: no weights"),
    "weights left out": (
        "31B",
        lambda config: config["quantization_config"]["config_groups"]["group_0"].pop("weights"),
        "sglang",
        "config_groups.group_0: no weights",
    ),
    "no weights below text_config": ("31B", no_weights_below_text, "vllm", "config_groups.group_0: no weights"),
    "broken pattern": ("31B", without("nothing", "re:("), "vllm", "re:(: no regular expression"),
    "status frozen": ("31B", status("frozen"), "transformers", "quantization_status: 'frozen'"),
    "status null": ("31B", status(None), "transformers", "quantization_status: null"),
    "old name of the section": ("31B", renamed_section, "transformers", "compression_config: the section has"),
    "no method": (
        "31B",
        lambda config: config["quantization_config"].update(quant_method="awq"),
        "vllm",
        "quant_method 'awq'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_named_and_mended(
    name: str, copied: Callable[..., Path], good: Callable[[str], Path]
) -> None:
    size, change, engine, line = BROKEN[name]
    directory = copied(size, change)
    found = judged(directory, engine)
    assert exit_code(found) == 1
    assert loads(found)[engine] is Loads.NO
    told = [one.line for one in found.verdicts[0].problems]
    assert any(line in text for text in told), told
    old = (directory / "config.json").read_bytes()

    made = fix(directory, [engine])
    assert made is not None
    assert made.kept == directory / "config.json.orig"
    assert made.changes
    assert read(directory) == read(good(size))
    assert (directory / "config.json.orig").read_bytes() == old
    assert judged(directory, engine).report.findings == judged(good(size), engine).report.findings
    files = {path.name: path.read_bytes() for path in directory.glob("*.json*")}

    assert fix(directory, [engine]) is None
    assert {path.name: path.read_bytes() for path in directory.glob("*.json*")} == files


def test_what_is_left_out_and_means_the_same_is_no_fault(copied: Callable[..., Path]) -> None:
    found = judged(copied("31B", left_out("strategy", "symmetric", "type")))
    assert exit_code(found) == 0
    assert not found.report.of(Severity.WARN)


def below_text(config: Config) -> None:
    config["text_config"]["quantization_config"] = config.pop("quantization_config")


def old_name_below_text(config: Config) -> None:
    config["text_config"]["compression_config"] = config.pop("quantization_config")


@pytest.mark.parametrize(
    ("change", "place", "lost_on"),
    [
        (renamed_section, "compression_config", {"transformers"}),
        (below_text, "text_config.quantization_config", {"sglang"}),
        (old_name_below_text, "text_config.compression_config", {"transformers", "vllm", "sglang"}),
    ],
)
def test_a_section_is_lost_on_the_engines_that_do_not_look_there(
    change: Callable[[Config], object], place: str, lost_on: set[str], copied: Callable[..., Path]
) -> None:
    directory = copied("31B", change)
    found = judged(directory)
    assert {engine for engine, one in loads(found).items() if one is Loads.NO} == lost_on
    for engine in ("transformers", "vllm", "sglang"):
        told = judged(directory, engine)
        subjects = {one.subject for one in told.report.of(Severity.FAIL) if one.level == "static"}
        assert (exit_code(told), subjects) == ((1, {place}) if engine in lost_on else (0, set()))
    assert fixed(directory).changes == (f"{place} -> quantization_config",)


@pytest.mark.parametrize(
    "entry", [r"re:^model\.vision_embeder.*", "model.language_model.layers.99.mlp", "re:vision_tower$"]
)
def test_a_dead_entry_goes_although_everything_loads(entry: str, copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("nothing", entry))
    assert loads(judged(directory))["vllm"] is Loads.YES
    assert fix(directory) is not None
    assert entry not in read(directory)["quantization_config"]["ignore"]


@pytest.mark.parametrize(
    "change",
    [
        moved_below_text,
        lambda config: config.update(compression_config=config.pop("quantization_config") | {"ignore": []}),
    ],
)
def test_a_section_in_another_place_is_replaced(
    change: Callable[[Config], object], copied: Callable[..., Path], good: Callable[[str], Path]
) -> None:
    directory = copied("31B", change)
    assert fix(directory) is not None
    assert read(directory) == read(good("31B"))


def test_a_correction_leaves_everything_else(copied: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        config["somebody"] = {"elses": ["key", None, 1.5, "ü"]}
        config["quantization_config"] |= {"kv_cache_scheme": {"num_bits": 8, "type": "float"}, "version": "0.9"}
        without("lm_head")(config)

    directory = copied("31B", change)
    before = read(directory)
    fix(directory)
    after = read(directory)
    assert after["quantization_config"]["kv_cache_scheme"] == {"num_bits": 8, "type": "float"}
    assert after["quantization_config"]["version"] == "0.9"
    assert {**after, "quantization_config": 0} == {**before, "quantization_config": 0}
    assert "ü" in (directory / "config.json").read_text()


def test_an_earlier_original_is_never_overwritten(copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("lm_head"))
    (directory / "config.json.orig").write_text("mine")
    assert fixed(directory).kept == directory / "config.json.orig.2"
    assert (directory / "config.json.orig").read_text() == "mine"


def test_a_write_that_fails_leaves_the_config(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = copied("31B", without("lm_head"))
    before = (directory / "config.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        fix(directory)
    assert (directory / "config.json").read_bytes() == before


# what no config can mend

Tensors = dict[str, TensorInfo]


def lose(*names: str) -> Callable[[Tensors], None]:
    def change(infos: Tensors) -> None:
        for name in names:
            del infos[name]

    return change


def as_packed(module: str, shape: tuple[int, int], group_size: int = 32) -> Callable[[Tensors], None]:
    def change(infos: Tensors) -> None:
        infos.pop(f"{module}.weight", None)
        n, k = shape
        for name, dtype, sizes in (
            ("weight_packed", DType.I32, (n, k // 8)),
            ("weight_scale", DType.BF16, (n, k // group_size)),
        ):
            infos[f"{module}.{name}"] = TensorInfo(f"{module}.{name}", dtype, sizes)

    return change


def as_plain(module: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    def change(infos: Tensors) -> None:
        lose(*(f"{module}.weight_{part}" for part in ("packed", "scale", "shape")))(infos)
        infos[f"{module}.weight"] = TensorInfo(f"{module}.weight", DType.BF16, shape)

    return change


def added(name: str, *shape: int, dtype: DType = DType.BF16) -> Callable[[Tensors], None]:
    return lambda infos: infos.update({name: TensorInfo(name, dtype, shape)})


def renamed(infos: Tensors) -> None:
    name = f"{TEXT}.norm.weight"
    infos["language_model.model.norm.weight"] = replace(infos.pop(name), name="language_model.model.norm.weight")


# size, what is done to the tensors, engine -> topic of its problem (None: that engine loads it)
DAMAGED: Mapping[str, tuple[str, Callable[[Tensors], None], Mapping[str, Topic | None]]] = {
    "a norm is lost": (
        "31B",
        lose(f"{LAYER}.input_layernorm.weight"),
        dict.fromkeys(("vllm", "sglang", "transformers"), Topic.MISSING),
    ),
    "a scale is lost": (
        "31B",
        lose(f"{LAYER}.mlp.up_proj.weight_scale"),
        dict.fromkeys(("vllm", "sglang", "transformers"), Topic.MISSING),
    ),
    "words are lost": (
        "31B",
        lose(f"{LAYER}.mlp.up_proj.weight_packed"),
        dict.fromkeys(("vllm", "sglang", "transformers"), Topic.MISSING),
    ),
    "an expert is lost": (
        "26B-A4B",
        lose(*(f"{LAYER}.experts.1.up_proj.weight_{part}" for part in ("packed", "scale", "shape"))),
        {"vllm": Topic.MISSING},
    ),
    "a shape is lost": (
        "31B",
        lose(f"{LAYER}.mlp.up_proj.weight_shape"),
        {"vllm": None, "sglang": None, "transformers": Topic.STORED},
    ),
    "a tensor too many": (
        "31B",
        added(f"{LAYER}.mlp.gate_proj.extra", 21504),
        {"vllm": Topic.UNKNOWN, "sglang": None, "transformers": None},
    ),
    "a v_proj where values are keys": (
        "31B",
        added(f"{TEXT}.layers.5.self_attn.v_proj.weight", 2048, 5376),
        {"vllm": Topic.UNKNOWN, "sglang": None},
    ),
    "the router packed": ("26B-A4B", as_packed(f"{LAYER}.router.proj", (3, 2816)), {"vllm": Topic.REFUSED}),
    "a projection of images packed": (
        "26B-A4B",
        as_packed("model.embed_vision.embedding_projection", (2816, 1152)),
        {"vllm": Topic.REFUSED},
    ),
    "patch_dense packed": (
        "12B",
        as_packed("model.vision_embedder.patch_dense", (3840, 6912)),
        {"sglang": Topic.REFUSED},
    ),
    "half of a fused module plain": (
        "31B",
        as_plain(f"{LAYER}.mlp.gate_proj", (21504, 5376)),
        {"vllm": Topic.FORM, "sglang": Topic.FORM},
    ),
    "zero points": (
        "31B",
        lambda infos: [
            added(f"{name[:-13]}weight_zero_point", *infos[name].shape, dtype=DType.I32)(infos)
            for name in [*infos]
            if name.endswith("weight_packed")
        ],
        {},
    ),
}


def damaged(directory: Path, size: str, change: Callable[[Tensors], object]) -> Path:
    config = sparse.little(size)
    plan = planned(config)
    infos = sparse.tensors_of(plan)
    change(infos)
    return sparse.write(directory, written_config(config, plan), infos.values(), sparse.shapes_of(plan))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tensors_are_told_by_engine_and_not_fixed(name: str, tmp_path: Path) -> None:
    size, change, wanted = DAMAGED[name]
    directory = damaged(tmp_path / "out", size, change)
    for engine, topic in wanted.items():
        (verdict,) = judged(directory, engine, tps=(1,)).verdicts
        topics = {one.topic for one in verdict.problems}
        assert topic in topics if topic else not topics, [one.line for one in verdict.problems]
    without("lm_head")(config := read(directory))  # something to mend, besides
    (directory / "config.json").write_text(json.dumps(config))
    files = state(directory)
    with pytest.raises(GateError) as error:
        fix(directory)
    assert error.value.offenders
    assert state(directory) == files


@pytest.mark.parametrize("size", ["31B", "26B-A4B"])
def test_layers_that_were_left_out_of_a_role_get_an_entry(size: str, tmp_path: Path) -> None:
    """Other programs leave out the first and the last layer."""
    plan = planned(sparse.little(size))
    kept = [
        step
        for step in plan.quantized
        if f"{LAYER}." in step.packed.name or (".layers.5.mlp." in step.packed.name and size == "31B")
    ]

    def change(infos: Tensors) -> None:
        for step in kept:
            as_plain(step.weight.module, step.weight.shape)(infos)

    directory = damaged(tmp_path / "out", size, change)
    assert loads(judged(directory))["vllm"] is Loads.NO
    assert fixed(directory).kept == directory / "config.json.orig"
    assert loads(judged(directory))["vllm"] is Loads.YES
    ignored = read(directory)["quantization_config"]["ignore"]
    wanted = {
        "31B": {
            r"re:.*language_model.*layers\.(0)\.self_attn\..*",
            r"re:.*language_model.*layers\.(0|5)\.mlp\..*",
        },
        "26B-A4B": {
            r"re:.*language_model.*layers\.(0)\.self_attn\..*",
            r"re:.*language_model.*layers\.(0)\.mlp\..*",
            r"re:.*language_model.*layers\.(0)\.(moe\.)?experts.*",
        },
    }
    assert wanted[size] <= {*ignored}
    assert not [
        one
        for one in judged(directory).report.findings
        if one.code == "static.ignore" and one.severity is not Severity.PASS
    ]
    assert fix(directory) is None


def test_a_weight_in_groups_of_another_size_gets_a_group_of_its_own(tmp_path: Path) -> None:
    directory = damaged(tmp_path / "out", "31B", as_packed(f"{LAYER}.mlp.down_proj", (5376, 21504), 64))
    assert loads(judged(directory))["vllm"] is Loads.NO
    assert fixed(directory)
    groups = read(directory)["quantization_config"]["config_groups"]
    assert [group["weights"]["group_size"] for group in groups.values()] == [32, 64]
    assert groups["group_1"]["targets"] == [r"re:.*language_model.*layers\.(0)\.mlp\.down_proj.*"]
    assert {loads(judged(directory))[engine] for engine in ("vllm", "sglang")} == {Loads.YES}


def test_other_formats_have_other_rules(tmp_path: Path) -> None:
    def change(infos: Tensors) -> None:
        as_plain(f"{LAYER}.mlp.up_proj", (21504, 5376))(infos)
        lose(f"{LAYER}.mlp.up_proj.weight")(infos)
        added(f"{LAYER}.mlp.up_proj.qweight", 672, 21504, dtype=DType.I32)(infos)
        added(f"{LAYER}.mlp.up_proj.scales", 42, 21504)(infos)

    with pytest.raises(UnsupportedError, match="gptq"):
        judged(damaged(tmp_path / "out", "31B", change))


def test_a_config_that_is_a_link_leaves_what_it_points_to(copied: Callable[..., Path], tmp_path: Path) -> None:
    """The hub's cache has such links."""
    directory = copied("31B", without("lm_head"))
    blob = tmp_path / "blob"
    (directory / "config.json").rename(blob)
    (directory / "config.json").symlink_to(blob)
    before = blob.read_bytes()
    fix(directory)
    assert blob.read_bytes() == before
    assert not (directory / "config.json").is_symlink()


def test_what_stays_uninitialised_is_said_in_the_engines_way(tmp_path: Path) -> None:
    directory = damaged(tmp_path / "out", "31B", lose(f"{LAYER}.layer_scalar"))
    texts = {one.engine: one.problems[0].line for one in judged(directory, tps=(1,)).verdicts}
    assert texts["vllm"] == f"{LAYER}.layer_scalar: lost: uninitialised memory, without a word"
    assert texts["sglang"].endswith("uninitialised memory, with a warning in the log")
    assert texts["transformers"].endswith("random numbers, with a warning in the log")


def test_names_of_another_program_are_read_by_some_engines(tmp_path: Path) -> None:
    found = judged(damaged(tmp_path / "out", "31B", renamed), tps=(1,))
    assert {engine for engine, one in loads(found).items() if one is not Loads.NO} == {"vllm"}
    assert exit_code(found) == 0
    assert any(one.code == "static.names" for one in found.report.of(Severity.WARN))


# verdicts and exit codes


def test_what_was_asked_for_fails_and_the_rest_warns(good: Callable[[str], Path]) -> None:
    directory = good("26B-A4B")
    assert loads(judged(directory)) == {"transformers": Loads.NO, "vllm": Loads.YES, "sglang": Loads.NO}
    codes = {
        (): 0,
        ("vllm",): 0,
        ("sglang",): 1,
        ("vllm", "transformers"): 1,
    }
    assert {engines: exit_code(judged(directory, *engines)) for engines in codes} == codes
    assert judged(directory).report.verdict is Severity.WARN
    assert [exit_code(judged(directory, "vllm", tps=(tp,))) for tp in (1, 2, 4)] == [0, 0, 1]
    assert [exit_code(judged(directory, tps=(tp,))) for tp in (2, 4)] == [0, 1]  # at 4, no engine is left


def test_a_plain_checkpoint_is_judged_too(tmp_path: Path) -> None:
    config = sparse.little("26B-A4B")
    infos = stored(Architecture.from_config(config))
    directory = sparse.write(tmp_path / "plain", config, infos.values(), {})
    found = judged(directory)
    assert exit_code(found) == 0
    assert set(loads(found).values()) == {Loads.YES}
    assert fix(directory) is None


def test_check_agrees_with_the_plan_that_wrote_it(good: Callable[[str], Path]) -> None:
    for size in ("E2B", "12B", "26B-A4B", "31B"):
        plan = planned(sparse.little(size))
        found, wanted = judged(good(size)).verdicts, verdicts(planned_weights(plan))
        assert [without_remedies(one) for one in found] == [without_remedies(one) for one in wanted]


def without_remedies(verdict: Verdict) -> Verdict:
    """`check` has other remedies than `plan`: nothing can be left out of what is written."""
    problems = tuple(replace(one, ways=()) for one in verdict.problems)
    return replace(verdict, problems=problems, remedies=())


def test_remedies_of_another_command_say_so(good: Callable[[str], Path]) -> None:
    found = judged(good("26B-A4B"))
    pieces = [one.remedy for one in found.report.findings]
    texts = ((*map(str, one.remedies), *(remark.remedy for remark in one.told)) for one in found.verdicts)
    pieces += [text for several in texts for text in several]
    options = [text for text in pieces if "`--pack" in text or "`--group-size" in text]
    assert options
    assert all("quantize again from the source with `--" in text for text in options), options


@pytest.mark.parametrize("change", [status("frozen"), renamed_section, lambda c: c["quantization_config"].pop(STATUS)])
def test_what_transformers_alone_does_not_read_warns_the_others(
    change: Callable[[Config], object], copied: Callable[..., Path]
) -> None:
    directory = copied("31B", change)
    assert {engine: exit_code(judged(directory, engine)) for engine in ("transformers", "vllm", "sglang")} == {
        "transformers": 1,
        "vllm": 0,
        "sglang": 0,
    }
    assert judged(directory, "vllm").report.verdict is Severity.WARN
    found = judged(directory)
    assert exit_code(found) == 1
    assert loads(found) == {"transformers": Loads.NO, "vllm": Loads.YES, "sglang": Loads.YES}


def test_a_broken_pattern_stops_every_engine(copied: Callable[..., Path]) -> None:
    found = judged(copied("31B", without("nothing", "re:(")))
    assert set(loads(found).values()) == {Loads.NO}


@pytest.mark.parametrize("key", ["input_activations", "output_activations"])
def test_quantized_activations_fail_and_are_never_discarded(
    key: str, copied: Callable[..., Path], good: Callable[[str], Path]
) -> None:
    directory = copied("31B", whole_group(**{key: {"num_bits": 8, "type": "int"}}))
    found = judged(directory)
    assert set(loads(found).values()) == {Loads.NO}
    assert any(f"{key}: quantized activations" in one.found for one in found.report.of(Severity.FAIL))
    files = state(directory)
    with pytest.raises(GateError, match="tensors cannot say whether activations are quantized") as error:
        fix(directory)
    assert key in error.value.offenders[0]
    assert state(directory) == files
    assert exit_code(judged(good("31B"), "vllm")) == 0


def test_a_preset_with_activations_is_never_discarded(copied: Callable[..., Path]) -> None:
    def preset(name: str) -> Callable[[Config], None]:
        def change(config: Config) -> None:
            config["quantization_config"]["config_groups"] = {name: ["Linear"]}
            without("lm_head")(config)

        return change

    directory = copied("31B", preset("W4A8"))
    with pytest.raises(GateError, match="activations"):
        fix(directory)
    config = read(directory)
    preset("W4A16")(config)
    (directory / "config.json").write_text(json.dumps(config))
    assert fixed(directory).changes


def test_a_correction_tells_each_change(copied: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        scheme(group_size=64, actorder="weight", observer="mse" * 40)(config)
        without("lm_head", "re:nothing")(config)
        renamed_section(config)

    directory = copied("31B", change)
    before = read(directory)["compression_config"]
    made = fixed(directory)
    weights = "quantization_config.config_groups.group_0.weights"
    after = read(directory)["quantization_config"]
    assert made.changes[0] == "compression_config -> quantization_config"
    assert {f"{weights}.group_size: 64 -> 32", 'quantization_config.ignore: "re:nothing" taken out'} < {*made.changes}
    assert any(line.startswith(f'{weights}.observer: "msemse') and "..." in line for line in made.changes)
    added_entries = [entry for entry in after["ignore"] if entry not in before["ignore"]]
    assert added_entries
    assert [line for line in made.changes if line.endswith(" added")] == [
        f"quantization_config.ignore: {json.dumps(entry)} added" for entry in added_entries
    ]


def test_a_correction_tells_null_from_what_is_left_out(copied: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        scheme(num_bits=None, bits=4)(config)
        left_out("group_size")(config)

    weights = "quantization_config.config_groups.group_0.weights"
    lines = {
        f"{weights}.num_bits: null -> 4", f"{weights}.bits: 4 -> left out", f"{weights}.group_size: left out -> 32",
    }  # fmt: skip
    assert {*fixed(copied("31B", change)).changes} == lines
    (line,) = fixed(copied("E2B", lambda config: config.pop("quantization_config"))).changes
    assert line.startswith("quantization_config: left out -> {")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (scheme(group_size=64), "group_size 64 in the config, 32 stored"),
        (lambda config: config.pop("quantization_config"), "quantization_config"),
        (without("nothing", r"re:.*\.mlp\..*"), "expected no entry of `ignore` that names it"),
        (without("lm_head"), "expected an entry of `ignore` that names it"),
    ],
)
def test_what_fix_corrects_is_said_in_the_remedy(
    change: Callable[[Config], object], line: str, copied: Callable[..., Path]
) -> None:
    static = [one for one in judged(copied("31B", change)).report.of(Severity.FAIL) if one.level == "static"]
    assert any(line in one.line for one in static), [one.line for one in static]
    assert all("`g4convert check OUT --fix`" in one.remedy for one in static)


def test_files_that_cannot_be_read_are_an_error(
    g4convert: Program, copied: Callable[..., Path], tmp_path: Path
) -> None:
    directory = copied("31B")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError):
        judged(directory)
    (tmp_path / "bare").mkdir()
    for path in (directory, tmp_path / "bare"):
        ran = g4convert("check", path)
        assert (ran.status, ran.out) == (3, "")
        assert ran.err.startswith("error:")


def test_no_directory_no_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        judged(tmp_path / "none")
    with pytest.raises(UsageError, match="transformers, vllm, sglang"):
        Asked.of(tmp_path, ["llama.cpp"])


# drafters


def drafter(directory: Path, change: Callable[[Config], object] = lambda _: None, size: str = "31B") -> Path:
    config = sparse.with_little_vocabulary(assistant(size))
    change(config)
    infos = stored(Architecture.from_config(config))
    return sparse.write(directory, config, infos.values(), {})


def paired(one: Path, target: Path) -> Checked:
    return check(Asked.of(one, ["vllm"], (), target))


def test_a_drafter_fits_its_target(tmp_path: Path, good: Callable[[str], Path]) -> None:
    found = paired(drafter(tmp_path / "d"), good("31B"))
    assert found.report.levels == ("static", "engines", "assistant")
    assert exit_code(found) == 0
    assert any(one.code == "assistant.pair" and one.severity is Severity.PASS for one in found.report.findings)
    assert exit_code(paired(drafter(tmp_path / "u", size="12B"), good("12B"))) == 0


def test_a_packed_drafter_is_checked_like_the_rest(tmp_path: Path, good: Callable[[str], Path]) -> None:
    config = sparse.with_little_vocabulary(assistant("31B"))
    one = sparse.write_plan(tmp_path / "d", planned(config, assistant="pack"), config)
    found = paired(one, good("31B"))
    assert (exit_code(found), loads(found)["vllm"]) == (0, Loads.YES)
    assert fix(one) is None


def layers_all_full(config: Config) -> None:
    text = config["text_config"]
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    text["global_head_dim"] = 256


@pytest.mark.parametrize(
    ("subject", "change", "severity"),
    [
        ("backbone_hidden_size", lambda config: config.update(backbone_hidden_size=2816), Severity.FAIL),
        ("vocab_size", lambda config: config["text_config"].update(vocab_size=4096), Severity.FAIL),
        ("num_centroids", lambda config: config.update(num_centroids=100), Severity.FAIL),
        ("sliding_attention", lambda config: config["text_config"].update(head_dim=128), Severity.FAIL),
        ("sliding_attention", lambda config: config["text_config"].update(num_key_value_heads=8), Severity.FAIL),
        ("full_attention", layers_all_full, Severity.FAIL),
        ("sliding_window", lambda config: config["text_config"].update(sliding_window=77), Severity.WARN),
    ],
)
def test_a_drafter_that_does_not_fit(
    subject: str,
    change: Callable[[Config], object],
    severity: Severity,
    tmp_path: Path,
    good: Callable[[str], Path],
) -> None:
    found = paired(drafter(tmp_path / "d", change), good("31B"))
    assert [one.subject for one in found.report.of(severity) if one.level == "assistant"] == [subject]
    assert exit_code(found) == (1 if severity is Severity.FAIL else 0)


def test_a_drafter_of_another_line(tmp_path: Path, good: Callable[[str], Path]) -> None:
    found = paired(drafter(tmp_path / "d", size="12B"), good("31B"))
    assert {"model_type", "backbone_hidden_size"} <= {one.subject for one in found.report.of(Severity.FAIL)}


@pytest.mark.parametrize("tokens", [{"a": 0}, None])
def test_a_drafter_of_other_tokens(tokens: dict[str, int] | None, tmp_path: Path, copied: Callable[..., Path]) -> None:
    """No engine reads its tokenizer, so it is a remark on the drafts; one that is none says nothing."""
    target, one = copied("31B"), drafter(tmp_path / "d")
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (one / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "made": "later"}))
    assert exit_code(paired(one, target)) == 0
    words = {"model": {"vocab": {"b": 0}}} if tokens else {"not": "a tokenizer"}
    (one / "tokenizer.json").write_text(json.dumps(words))
    found = paired(one, target)
    assert exit_code(found) == 0
    warned = [one.subject for one in found.report.of(Severity.WARN) if one.code == "assistant.config"]
    assert warned == (["tokenizer.json"] if tokens else [])


@pytest.mark.parametrize("text", ["{", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_tokenizer_of_a_drafter_that_cannot_be_read_stops_no_engine(
    text: str, tmp_path: Path, copied: Callable[..., Path]
) -> None:
    """VLLM 0.33 (`SpeculativeConfig`) and SGLang 0.5.23 (`TpModelWorker`) give a drafter its target's."""
    one, target = drafter(tmp_path / "d"), copied("31B")
    answers = loads(judged(one))
    (one / "tokenizer.json").write_text(text)
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    found = judged(one)
    assert loads(found) == answers
    assert [one.subject for one in found.report.of(Severity.WARN) if one.code == "static.side_files"]
    assert exit_code(paired(one, target)) == 0
    (target / "tokenizer.json").write_text(text)
    assert {loads(judged(target))[engine] for engine in ("vllm", "sglang")} == {Loads.NO}


def test_only_drafters_have_targets(tmp_path: Path, good: Callable[[str], Path]) -> None:
    one = drafter(tmp_path / "d")
    with pytest.raises(UsageError, match="no MTP assistant"):
        paired(good("31B"), good("31B"))
    with pytest.raises(UsageError, match="an MTP assistant itself"):
        paired(one, one)


# the command


def test_the_command_prints_verdicts_and_reasons(g4convert: Program, good: Callable[[str], Path]) -> None:
    ran = g4convert("check", good("26B-A4B"), "--engine", "sglang", "--engine", "vllm")
    assert ran.status == 1
    assert "fail engines.sglang SGLang 0.5.23, TP 1: experts: both kernels, Marlin and Triton, assert SiLU" in ran.out
    assert "--pack attention --pack mlp" in ran.out
    assert "transformers" not in ran.out
    assert g4convert("check", good("26B-A4B"), "--engine", "vllm", "-q").out == ""


def test_the_command_as_json(g4convert: Program, good: Callable[[str], Path]) -> None:
    ran = g4convert("check", good("26B-A4B"), "--json", "--tp", 2, "--tp", 4)
    document = json.loads(ran.out)
    assert [(one["engine"], one["tp"], one["loads"]) for one in document["engines"]] == [
        ("transformers", 1, "no"),
        ("vllm", 2, "caveat"),
        ("vllm", 4, "no"),
        ("sglang", 2, "no"),
        ("sglang", 4, "no"),
    ]
    assert document["engines"][2]["problems"][1]["remedy"]
    assert document["verdict"] == "warn"


def test_the_command_says_that_nothing_is_quantized(
    g4convert: Program, good: Callable[[str], Path], dense: Path
) -> None:
    assert g4convert("check", dense).out.startswith("nothing is quantized here; ")
    assert json.loads(g4convert("check", dense, "--json").out)["packed_modules"] == 0
    assert "nothing is quantized" not in g4convert("check", good("31B")).out
    assert json.loads(g4convert("check", good("31B"), "--json").out)["packed_modules"] > 0


@pytest.fixture
def in_cache(good: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot of `somebody/gemma` in an otherwise empty cache: links to blobs, as the hub's library makes them."""
    repo = tmp_path / "hub" / "models--somebody--gemma"
    snapshot = repo / "snapshots" / ("a" * 40)
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    for file in good("31B").iterdir():
        (repo / "blobs" / file.name).hardlink_to(file)
        (snapshot / file.name).symlink_to(repo / "blobs" / file.name)
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("command", ["check", "verify"])
def test_the_commands_take_hub_names(command: str, g4convert: Program, in_cache: Path) -> None:
    document = json.loads(g4convert(command, "somebody/gemma", "--json").out)
    assert (document["output"], document["verdict"]) == (str(in_cache), "pass")
    ran = g4convert(command, "somebody/else")
    assert (ran.status, ran.out) == (5, "")
    assert "somebody/else: not in the Hugging Face cache" in ran.err


def test_the_command_does_not_change_a_cache(g4convert: Program, in_cache: Path) -> None:
    before = {path.name: (path.is_symlink(), path.read_bytes()) for path in in_cache.glob("*.json*")}
    for name in ("somebody/gemma", in_cache):
        ran = g4convert("check", name, "--fix")
        assert (ran.status, ran.out) == (2, "")
        assert "hint: hf download somebody/gemma --local-dir gemma; g4convert check gemma --fix" in ran.err
    assert {path.name: (path.is_symlink(), path.read_bytes()) for path in in_cache.glob("*.json*")} == before


def test_the_command_fixes(g4convert: Program, copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("lm_head"))
    assert g4convert("check", directory).status == 1
    ran = g4convert("check", directory, "--fix")
    assert ran.status == 0
    assert "config.json.orig" in ran.err
    assert "  quantization_config.ignore: " in ran.err
    again = g4convert("check", directory, "--fix")
    assert (again.status, again.err) == (0, "config.json: nothing to correct\n")


def test_the_command_says_why_it_does_not_fix(g4convert: Program, tmp_path: Path) -> None:
    directory = damaged(tmp_path / "out", "31B", lose(f"{LAYER}.layer_scalar"))
    ran = g4convert("check", directory, "--fix")
    assert ran.status == 1
    assert "not fixed" in ran.err
    assert "layer_scalar" in ran.err


def test_the_command_pairs(g4convert: Program, tmp_path: Path, good: Callable[[str], Path]) -> None:
    one = drafter(tmp_path / "d", lambda config: config.update(backbone_hidden_size=2816))
    ran = g4convert("check", one, "--assistant-of", good("31B"))
    assert ran.status == 1
    assert "fail assistant.pair backbone_hidden_size: 2816, expected 5376, as the target" in ran.out


def test_strict_fails_on_a_warning(g4convert: Program, good: Callable[[str], Path]) -> None:
    assert g4convert("check", good("26B-A4B")).status == 0
    assert g4convert("check", good("26B-A4B"), "--strict").status == 1


def test_plan_and_quantize_hold_the_gate(g4convert: Program, tmp_path: Path) -> None:
    config = sparse.little("26B-A4B")
    source = sparse.write(tmp_path / "m", config, stored(Architecture.from_config(config)).values(), {})
    shown = g4convert("plan", source)
    assert shown.status == 0
    assert "1, 2, 4, 8" in shown.out
    refused = g4convert("plan", source, "--engine", "sglang")
    assert refused.status == 1
    assert "SGLang 0.5.23 cannot load it" in refused.err
    assert "experts" in refused.out  # the plan is told all the same
    assert g4convert("plan", source, "--engine", "vllm", "--tp", 2).status == 0
    assert g4convert("plan", source, "--engine", "vllm", "--tp", 4).status == 1
    assert g4convert("plan", source, "--engine", "ollama").status == 2

    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: w4a16-g32\nengines: [vllm, sglang]\n")
    ran = g4convert("quantize", source, "-o", tmp_path / "out", "-r", recipe)
    assert ran.status == 1
    assert "GELU" in ran.err
    assert not list(tmp_path.glob("out*"))
    for option in (["--engine", "vllm", "--tp", 4], ["--engine", "transformers"]):
        assert g4convert("quantize", source, "-o", tmp_path / "out", *option).status == 1
    assert not list(tmp_path.glob("out*"))


def test_an_option_wins_over_a_recipe(g4convert: Program, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("engines: [sglang]\n")
    told = json.loads(g4convert("plan", "x", "-r", recipe, "--show-config", "--json").out)
    assert told["engines"] == {"value": ["sglang"], "from": str(recipe)}
    told = json.loads(g4convert("plan", "x", "-r", recipe, "--engine", "vllm", "--show-config", "--json").out)
    assert told["engines"] == {"value": ["vllm"], "from": "--engine"}


def test_every_remedy_of_an_engine_is_printed(g4convert: Program, copied: Callable[..., Path]) -> None:
    out = g4convert("check", copied("26B-A4B", without("router")), "--engine", "transformers").out
    assert "`--pack attention --pack mlp` to leave experts in bf16" in out
    assert "check OUT --fix" in out


def test_the_plan_is_short_about_engines(g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sparse.little("26B-A4B")
    source = sparse.write(tmp_path / "m", config, stored(Architecture.from_config(config)).values(), {})
    assert len(json.loads(g4convert("plan", source, "--json").out)["engines"]) == 9
    for columns, most in ((240, 10), (100, 13)):
        monkeypatch.setenv("COLUMNS", str(columns))
        told = g4convert("plan", source).out.partition("\nengine ")[2].partition("\n\n")[0]
        assert 5 < len(told.splitlines()) <= most


@pytest.mark.wide
def test_check_imports_nothing_heavy(good: Callable[[str], Path]) -> None:
    code = (
        "import sys\nfrom g4convert.cli.app import main\n"
        "try: main(sys.argv[1:])\nfinally: assert not {'torch', 'numpy', 'numba'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, "check", str(good("31B")), "-q"]
    assert subprocess.run(command, check=False).returncode == 0
