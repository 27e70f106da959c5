"""Models as trainers hold them, written by these; each hint says what they are, and what it names mends them."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers.conversions import stored
from helpers.grids import two_when_quick
from helpers.program import Program, Ran, g4convert
from helpers.ranked import ranked
from helpers.rewriting import Tensors, rewritten
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrizations, parametrize, remove_weight_norm, weight_norm

from g4convert.checkpoint.directory import Checkpoint
from g4convert.forward.models import model_class, quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from g4convert.forward.models import Model

__all__ = ["g4convert"]  # a fixture

FLAT = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText
import torch
source, out = map(Path, PATHS)
distributed.init_process_group("gloo")
model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
layer = type(model.model.language_model.layers[0])
sharded = FSDP(model, device_id=torch.device("cpu"),
               auto_wrap_policy=ModuleWrapPolicy({layer}))
with FSDP.state_dict_type(sharded, StateDictType.LOCAL_STATE_DICT):
    flat = {name: getattr(one, "local_shards", lambda: [])() for name, one in sharded.state_dict().items()}
    plain = {name: one for name, one in sharded.state_dict().items() if not flat[name]}
parts = {name: shards[0].tensor.clone() for name, shards in flat.items() if shards}
with FSDP.state_dict_type(sharded, StateDictType.FULL_STATE_DICT):
    whole = sharded.state_dict()
if distributed.get_rank() == 0:
    (out / "flat").mkdir(parents=True)
    save_file({**parts, **{n: t.clone() for n, t in plain.items()}}, out / "flat" / "model.safetensors")
    model.save_pretrained(out / "whole", state_dict=whole)
distributed.barrier()
distributed.destroy_process_group()
"""


WHOLE = (
    "FSDP's flat parameters, of which no file says what they hold: save the model in the training program with "
    "StateDictType.FULL_STATE_DICT"
)


def hint(ran: Ran) -> str:
    assert ran.status == 3, ran.err
    return ran.err.partition("hint: ")[2].strip()


def same_tensors(one: Path, other: Path) -> bool:
    first, second = (
        {name: path.joinpath(t.file) for name, t in Checkpoint.open(path).tensors.items()} for path in (one, other)
    )
    files = {file: load_file(file) for file in (*first.values(), *second.values())}
    first.pop("lm_head.weight", None)  # tied
    return first.keys() == second.keys() and all(
        torch.equal(files[first[name]][name], files[second[name]][name]) for name in first
    )


@pytest.mark.full
def test_flat_parameters_are_saved_whole(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    done = ranked(FLAT.replace("PATHS", repr((str(dense), str(tmp_path)))), tmp_path)
    assert done.statuses == (0, 0), done.err
    flat = tmp_path / "flat"
    flat.joinpath("config.json").write_bytes((dense / "config.json").read_bytes())
    assert any(name.endswith("_flat_param") for name in Checkpoint.open(flat).tensors)
    assert hint(g4convert("plan", flat)) == WHOLE
    assert g4convert("plan", tmp_path / "whole").status == 0
    assert same_tensors(tmp_path / "whole", dense)


@pytest.mark.parametrize(
    "name", ["{}._flat_param", "{}._fsdp_wrapped_module._flat_param", "_flat_param", "flat_param_0"]
)
def test_flat_parameters_are_known_by_their_names(name: str, dense: Path, tmp_path: Path, g4convert: Program) -> None:
    def flat(tensors: Tensors) -> Tensors:
        layers = [re.match(r"(.*language_model\.layers\.\d+)\.", one) for one in tensors]
        parts = {name.format(match[1]): torch.zeros(8) for match in layers if match}
        return {**{one: t for one, t in tensors.items() if "language_model.layers" not in one}, **parts}

    assert hint(g4convert("plan", rewritten(dense, tmp_path / "flat", flat))) == WHOLE


def linears(model: Model, part: str) -> Iterator[torch.nn.Module]:
    return (one for name, one in model.named_modules() if re.fullmatch(rf".*language_model.*\.{part}", name))


def old_norm(module: torch.nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(module)


def remove(module: torch.nn.Module) -> None:
    parametrize.remove_parametrizations(module, "weight")


NORMS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "weight norm": (old_norm, remove_weight_norm, "call torch.nn.utils.remove_weight_norm on each of these modules"),
    "weight norm, a parametrization": (
        parametrizations.weight_norm,
        remove,
        "call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') on each of these modules",
    ),
    "spectral norm, a parametrization": (
        parametrizations.spectral_norm,
        remove,
        "call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') on each of these modules",
    ),
}


@pytest.mark.parametrize("part", ["up_proj", "(mlp|self_attn)\\.[a-z]+_proj"])
@pytest.mark.parametrize("case", two_when_quick(NORMS))
def test_computed_weights_are_written_out(
    case: str, part: str, dense: Path, tmp_path: Path, g4convert: Program
) -> None:
    """Also from the files: the trainer's modules are made again, loaded, and freed of what computes their weights."""
    add, take, told = NORMS[case]
    trained, mended = tmp_path / "trained", tmp_path / "mended"
    trained.mkdir()
    state = {n: t.detach().clone() for n, t in changed(dense, part, add).state_dict().items() if n != "lm_head.weight"}
    save_file(state, trained / "model.safetensors", metadata={"format": "pt"})
    trained.joinpath("config.json").write_bytes((dense / "config.json").read_bytes())
    assert told in hint(g4convert("plan", trained))
    again = changed(dense, part, add)
    again.load_state_dict(load_file(trained / "model.safetensors"), strict=False)
    for module in linears(again, part):
        take(module)
    with quiet_transformers():
        again.save_pretrained(mended)
    assert g4convert("plan", mended).status == 0


def changed(source: Path, part: str, add: Callable[[torch.nn.Module], Any]) -> Model:
    """The model with some of its Linears changed."""
    with quiet_transformers():
        kind = json.loads((source / "config.json").read_text())["model_type"]
        model = model_class(kind).from_pretrained(source, dtype=torch.float32)
    for module in linears(model, part):
        add(module)
    return model


def padded(to: int, *parts: str) -> Callable[[Tensors], Tensors]:
    """Returns what adds rows of zeros to parts of routers."""

    def change(tensors: Tensors) -> Tensors:
        return {
            name: torch.cat([one, one.new_zeros(to - one.shape[0], *one.shape[1:])]) if name.endswith(parts) else one
            for name, one in tensors.items()
        }

    return change


@pytest.mark.parametrize("parts", [("router.proj.weight",), ("router.proj.weight", "router.per_expert_scale")])
def test_padded_routers_are_cut(parts: tuple[str, ...], moe: Path, tmp_path: Path, g4convert: Program) -> None:
    source = rewritten(moe, tmp_path / "padded", padded(16, *parts))
    assert hint(g4convert("plan", source)) == (
        "routers of 16 rows for 12 experts, as training on several ranks pads them: keep the first 12 rows of each of "
        "these"
    )
    cut = rewritten(source, tmp_path / "cut", lambda t: {n: w[:12] if n.endswith(parts) else w for n, w in t.items()})
    assert g4convert("plan", cut).status == 0
    assert same_tensors(cut, moe)


def test_a_router_of_fewer_rows_is_not_padded(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    source = rewritten(moe, tmp_path / "short", lambda t: {n: w[:8] if "router.proj" in n else w for n, w in t.items()})
    assert "pads them" not in hint(g4convert("plan", source))


def narrowed(layer: int, width: int) -> Callable[[Tensors], Tensors]:
    """Returns what cuts the MLP of a layer, as pruning does."""
    mlp = f"layers.{layer}.mlp."

    def change(tensors: Tensors) -> Tensors:
        return {
            name: (one[:, :width] if "down_proj" in name else one[:width]) if f"language_model.{mlp}" in name else one
            for name, one in tensors.items()
        }

    return change


def widened(width: int) -> Callable[[Tensors], Tensors]:
    """Returns what follows the remedy."""

    def change(tensors: Tensors) -> Tensors:
        found = {}
        for name, one in tensors.items():
            axis = 1 if "down_proj" in name else 0
            missing = width - one.shape[axis] if "language_model.layers." in name and ".mlp." in name else 0
            found[name] = torch.cat(
                [one, one.new_zeros((one.shape[0], missing) if axis else (missing, *one.shape[1:]))], axis
            )
        return found

    return change


def test_mlps_of_other_widths_are_widened(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    """As pruning by layers leaves them: no config says more than one width, and zeros change no answer."""
    source = rewritten(dense, tmp_path / "pruned", narrowed(1, 192))
    assert hint(g4convert("plan", source)).startswith(
        "these layers have MLPs of widths of their own, as pruning leaves them, and no engine builds such a model: "
        "widen them to 256, with rows of zeros in gate_proj and up_proj and columns of zeros in down_proj"
    )
    wide = rewritten(source, tmp_path / "wide", widened(256))
    assert g4convert("plan", wide).status == 0
    up, gate, down = (
        stored(wide)[f"model.language_model.layers.1.mlp.{one}_proj.weight"] for one in ("up", "gate", "down")
    )
    x = torch.randn(3, up.shape[1])
    first, whole = (
        torch.nn.functional.gelu(x @ g.float().T) * (x @ u.float().T) @ d.float().T
        for g, u, d in ((gate[:192], up[:192], down[:, :192]), (gate, up, down))
    )
    assert torch.allclose(first, whole)


def test_other_shapes_beside_those_of_an_mlp_are_no_pruning(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    norm = "model.language_model.norm.weight"
    source = rewritten(dense, tmp_path / "m", lambda t: narrowed(1, 192)(t) | {norm: torch.zeros(3)})
    assert "pruning" not in hint(g4convert("plan", source))


def test_an_mlp_that_is_wider_than_the_others_is_not_cut(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    source = rewritten(
        dense, tmp_path / "m", lambda t: {n: widened(512)({n: w})[n] if ".1.mlp." in n else w for n, w in t.items()}
    )
    assert hint(g4convert("plan", source)).endswith("no engine builds such a model: take the model that was pruned")
