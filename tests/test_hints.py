"""Every hint of a refusal of a source, a checkpoint or a recipe, and the test that follows it.

A hint is followed if a test does what it says and sees that it works. `FOLLOWED` names that test, and `CAUSES` that of
what is said of tensors; `OUTSIDE` names what `make test-remedies` follows with the tools of others (but Megatron's,
which need a GPU); `NOT_FOLLOWED` gives the reason for the rest.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("checkpoint", "gemma4", "planning", "engines", "inspection", "conversion")
REMEDIES = "tests/cli/test_remedies.py::"
_SOURCE = f"{REMEDIES}test_the_hint_of_a_refused_source_works"
_CHOICES = "tests/cli/test_option_remedies.py::"
_OPTIONS = f"{_CHOICES}test_the_hint_of_refused_options_works"
_LAYOUTS = "tests/checkpoint/test_not_a_model.py::"
_HUB = "tests/cli/test_hub_remedies.py::"
_MACHINE = "tests/cli/test_machine_remedies.py::"
_METHODS = "tests/cli/test_method_remedies.py::"
_CHECK = "tests/cli/test_check_remedies.py::"
_REFUSALS = "tests/cli/test_refusals.py::"

FOLLOWED: Mapping[str, tuple[str, ...]] = {
    _SOURCE: (
        "pass {}", "programs differ in which they read: delete one",
        "download the model into it first", "run the same download again", "copy {} from the model's repository",
        "put the file, or a link to it, in its place", "complete the download, or save the model again",
        "download the model again, or save it again with `save_pretrained`", "fetch the model again",
        "download or save this file again; it is damaged", "run `git lfs pull` there",
        "pass the original safetensors checkpoint", "pass the directory that holds the weights",
        "pass the directory that the trainer saved the model to", "delete {}: it belongs to another save",
        "<SAVE_AGAIN> || <_NO_INDEX>", "where you trust it and save it with `save_pretrained`",
        "rename the file", "supported: {}", "compare with the config.json of the model", "delete {} or {}",
        "start from the bf16 checkpoint", "a merge or a quantizer left them: delete them",
        "lists what the directory holds",
    ),
    _OPTIONS: (
        "<_advise_group_size(", "leave nothing to pack at 4 or 8",
        "--num-bits 4, or --method mse", "MODEL` lists the roles it has", "MODEL -v` lists every module",
        "decide alike on q, k and v", "schema` lists every key", "schema` says what can",
        "list` shows the shipped ones", "list` shows them", "`*` stays in its directory",
    ),
    "tests/gemma4/test_wrong_keys.py::test_the_model_type_is_that_of_what_the_config_describes": (
        "set model_type to {}",
    ),
    f"{REMEDIES}test_experts_of_several_dtypes_are_packed_or_saved_in_one": ("pack the experts, or save",),
    f"{_CHOICES}test_the_hint_about_a_place_to_write_works": (
        "give -o another directory", "cd .. and -o {}, or give", "or --overwrite to replace this one",
        "move it away, or give -o another",
    ),
    f"{_CHOICES}test_the_hint_about_what_lies_beside_an_output_works": ("--overwrite makes it again", "move it away"),
    "tests/conversion/test_resume.py::test_what_no_run_left_is_refused_and_overwrite_starts_again": (
        "--overwrite starts again", "--overwrite starts a run again",
    ),
    f"{_LAYOUTS}test_an_index_that_is_wrong_may_be_deleted": ("restore {} from the model's repository; if its shards",),
    f"{_LAYOUTS}test_shards_of_an_earlier_save_are_named_and_may_be_deleted": ("delete {}, or the others",),
    "tests/cli/test_beside.py::test_the_hint_about_a_link_to_nothing_works": ("leave them behind: --leave",),
    "tests/checkpoint/test_source.py::test_the_nearest_directory_is_named": ("<_name_hint(",),
    "tests/inspection/test_drafter.py::test_the_command_pairs": ("check OUT --assistant-of MODEL",),
    f"{_HUB}test_run_the_same_command_again": ("run the same command again",),
    f"{_HUB}test_point_hf_home_to_a_larger_disk": ("free some space, or point HF_HOME",),
    f"{_HUB}test_name_a_revision": ("write org/name@branch", "for branches and tags"),
    f"{_HUB}test_unset_the_flag": ("unset HF_HUB_OFFLINE",),
    f"{_HUB}test_accept_the_terms_and_log_in": ("accept the terms at",),
    f"{_HUB}test_log_in_for_a_private_repository": ("a private repository needs",),
    f"{_HUB}test_correct_the_spelling": ("check the spelling",),
    f"{_HUB}test_check_the_network": ("check the network",),
    f"{_MACHINE}test_permissions_of_what_is_read": ("check its permissions", "check the file's owner"),
    f"{_MACHINE}test_a_mount_point_gets_a_directory": ("a directory in the mount",),
    f"{_MACHINE}test_a_source_that_changed_is_read_again": ("start again when nothing writes it",),
    "tests/conversion/test_resume.py::test_a_source_that_is_touched_during_the_run_costs_nothing": (
        "if only its times changed, set them back",
    ),
    f"{_MACHINE}test_a_run_that_was_stopped_continues": ("the same command continues",),
    f"{_METHODS}test_a_drafter_takes_another_method": ("--method mse",),
    f"{_METHODS}test_weights_alone_need_no_calibration": ("w4a16-g32-gptq uses it",),
    f"{_METHODS}test_scales_are_trained_on_the_cpu_or_another_method_is_taken": ("--device cpu, or --method gptq",),
    f"{_METHODS}test_a_qat_source_keeps_its_codes_or_is_calibrated_all_the_same": ("-r qat-q4_0 keeps its codes",),
    f"{_METHODS}test_a_calibration_file_is_made_again": ("`g4convert calibrate MODEL -o FILE` makes one",),
    f"{_METHODS}test_an_importance_matrix_is_copied_again_or_made": (
        "copy the file again, or make it again with `llama-imatrix", "`llama-imatrix -m MODEL.gguf",
        "an importance matrix of llama.cpp", "-r w4a16-g32-imatrix uses it",
    ),
    f"{_METHODS}test_weights_that_are_not_finite_are_replaced": ("or take an earlier checkpoint of the training",),
    f"{_CHECK}test_what_an_output_may_not_have_is_left_out": ("leave them out of --carry", "leave it out of --carry"),
    f"{_CHECK}test_a_directory_that_exists_is_passed_from_python": ("pass the directory that holds config.json",),
    f"{_CHECK}test_patterns_are_written_without_repeats_in_repeats": ("write patterns without repeats",),
    f"{_CHECK}test_a_drafter_is_verified_and_its_model_speaks": ("judges drafters",),
    f"{_CHECK}test_a_tokenizer_is_copied": ("copy tokenizer.json from",),
    f"{_CHECK}test_a_reference_is_that_of_the_original": ("a reference holds what the original answers",),
    f"{_CHECK}test_what_cannot_be_fixed_is_quantized_again": (
        "nothing was written; quantize", "nothing was written; `g4convert check",
    ),
    f"{_CHECK}test_what_was_lost_is_copied": ("nothing was written; copy what was lost",),
    f"{_CHECK}test_a_checkpoint_of_another_format_is_inspected": ("`g4convert inspect` describes it",),
    f"{_CHECK}test_whole_roles_are_packed_where_no_list_can_be_proved": ("pack whole roles, by",),
    f"{_CHECK}test_the_gate_names_what_passes_it": ("<'; '.join(ways)>",),
    f"{_REFUSALS}test_an_output_that_cannot_get_its_name_is_not_lost": ("<remedy>",),
    "tests/conversion/test_ranks.py::test_ranks_that_were_started_differently_are_refused_by_name": (
        "start every rank with the same command",
    ),
    "tests/conversion/test_ranks.py::test_ranks_that_cannot_meet_are_started_again": ("start all ranks with the same",),
    "tests/conversion/test_field_sources.py::test_what_no_gemma_computes_with_is_deleted": ("<'; '.join(hints)>",),
}  # fmt: skip
"""Test -> parts of the hints that it follows."""

_CAUSES = "tests/gemma4/test_causes.py::"
_NAMES = "tests/gemma4/test_name_causes.py::"
_SHAPES = "tests/gemma4/test_shape_causes.py::"
_FITTING = "tests/gemma4/test_wrong_keys.py::"
_TRAINERS = "tests/gemma4/test_trainers.py::"
CAUSES: Mapping[str, tuple[str, ...]] = {
    _SOURCE: (
        "copy them from the model it was made of", "no output head is stored", "the model is whole without them",
        "delete it if it is a copy of k_proj", "put it back, as the base model's", '": null` in config.json says so',
        "decoder weights under a multimodal config.json", "save the tensors without the",
        "in config.json set", "two copies of one model in one directory", "the files have no vision weights",
    ),
    f"{_CAUSES}test_weights_in_dtypes_that_no_engine_computes_in": ("load the model in bfloat16",),
    f"{_CAUSES}test_a_drafter_without_centroids_scores_the_whole_vocabulary": ("scores the whole vocabulary",),
    f"{_SHAPES}test_layers_with_other_numbers_of_experts_are_said_to_be": ("prune all layers alike",),
    f"{_CAUSES}test_experts_are_never_said_to_be_spare": ("is that of a model without", "take the one saved"),
    f"{_CAUSES}test_layers_with_gaps_are_numbered_again": ("layers are numbered with gaps", "number them from 0 on"),
    f"{_CAUSES}test_a_projection_without_its_tower": ("is there without its tower", "a tower that is not there"),
    f"{_CAUSES}test_towers_under_the_config_of_a_text_model": ("describes the text model alone",),
    f"{_NAMES}test_what_engines_merge_is_taken_from_the_checkpoint": ("merged as engines hold them",),
    f"{_NAMES}test_names_of_another_program": ("names of another program",),
    f"{_SHAPES}test_tensors_without_values_are_those_of_a_rank": ("tensors without values",),
    f"{_SHAPES}test_weights_that_are_transposed_are_said_to_be": ("these are transposed",),
    f"{_SHAPES}test_a_part_of_each_tensor_is_that_of_a_rank": ("gather the parts of all ranks",),
    f"{_FITTING}test_sizes_of_single_layers_that_do_not_fit_are_named": ("take it from the config.json saved with",),
    f"{_TRAINERS}test_flat_parameters_are_saved_whole": ("FSDP's flat parameters",),
    f"{_TRAINERS}test_computed_weights_are_written_out": ("remove_weight_norm", "remove_parametrizations"),
    f"{_TRAINERS}test_padded_routers_are_cut": ("rows of each of these",),
    f"{_TRAINERS}test_an_mlp_that_is_wider_than_the_others_is_not_cut": ("take the model that was pruned",),
    f"{_TRAINERS}test_mlps_of_other_widths_are_widened": ("columns of zeros",),
}  # fmt: skip
"""Test -> parts of the remedies that the modules of causes return."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "tests/remedies/follow.py": ("<remedy.format(",),  # Megatron's alone is not followed: it needs a GPU
    "tests/remedies/merge.py": ("`mlx_lm.fuse", "merge the adapter first"),
}
"""Script of `make test-remedies` -> parts of the hints that it follows."""

NOT_FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "handed on from another error, which has a hint of its own": (
        "<error.hint>", "<'; '.join(dict.fromkeys((error.hint", "<hint>",
    ),
}  # fmt: skip
"""Reason -> parts of the hints that no test follows."""


def words(node: ast.expr, constants: Mapping[str, str]) -> str:
    """Return the text of a hint, `{}` for what is filled in, and code in angle brackets."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.Name(id=name):
            return constants.get(name, f"<{name}>")
        case ast.BoolOp(values=parts):
            return " || ".join(words(part, constants) for part in parts)
        case ast.IfExp(body=one, orelse=other):
            return f"{words(one, constants)} || {words(other, constants)}"
    return f"<{ast.unparse(node)}>"


def assigned(tree: ast.Module) -> Mapping[str, str]:
    """Return the texts that names of a module stand for, those of functions included."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.setdefault(name, words(value, {}))
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                found |= {n.id: words(v, {}) for n, v in zip(names, values, strict=False) if isinstance(n, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.setdefault(name, words(value, {}))
    return found


@cache
def hints() -> Mapping[str, str]:
    """Return every hint that an error is given in these folders, with the module that gives it."""
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for folder in FOLDERS
        for path in sorted((ROOT / "g4convert" / folder).rglob("*.py"))
    }
    below = [ast.parse(path.read_text()) for path in (ROOT / "g4convert").glob("*.py")]
    texts = (text for tree in (*below, *trees.values()) for text in assigned(tree).items())
    shared = {name: text for name, text in texts if name.isupper()}
    return {
        words(word.value, {**shared, **assigned(tree)}): module
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "hint"
    }


def parts() -> Iterator[tuple[str, str]]:
    for table in (FOLLOWED, OUTSIDE, NOT_FOLLOWED):
        yield from ((part, where) for where, of in table.items() for part in of)


def returned() -> Iterator[str]:
    """Yield the texts that functions of the modules of causes return, filled in with {}."""
    for name in ("causes", "name_causes", "shape_causes", "wrong_keys"):
        for node in ast.walk(ast.parse((ROOT / "g4convert" / "gemma4" / f"{name}.py").read_text())):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant | ast.JoinedStr):
                yield words(node.value, {})


def test_every_cause_has_a_test() -> None:
    texts = [text for text in returned() if len(text) > len("{} to {}: a text of its own")]
    parts = [part for of in CAUSES.values() for part in of]
    assert [text for text in texts if not any(part in text for part in parts)] == []
    assert len(texts) > len(CAUSES)
    assert [part for part in parts if not any(part in text for text in texts)] == []


def test_every_hint_has_a_test_or_a_reason() -> None:
    lost = {hint: module for hint, module in hints().items() if not any(part in hint for part, _ in parts())}
    assert lost == {}
    assert len(hints()) > 60


def test_every_part_is_that_of_a_hint() -> None:
    assert [part for part, _ in parts() if not any(part in hint for hint in hints())] == []


@pytest.mark.parametrize("where", [*dict.fromkeys((*FOLLOWED, *OUTSIDE, *CAUSES))])
def test_what_follows_a_hint_is_there(where: str) -> None:
    path, _, name = where.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert (name or "main") in functions
