"""A unified decoder written as `Gemma4ForCausalLM`, which the engines know: it computes the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Checkpoints
from helpers.released_configs import Config

from g4convert.checkpoint.directory import Checkpoint
from g4convert.forward.models import quiet_transformers
from g4convert.planning.config import make_output_config
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import load
from g4convert.planning.steps import make_plan
from g4convert.planning.weights import make_planned_weights

LEFT_TO_DEFAULTS = ("sliding_window", "max_position_embeddings", "use_bidirectional_attention")


def text_only(source: Path) -> tuple[Plan, Config]:
    """The plan of a text-only output, and its config without the section on packed weights."""
    checkpoint = Checkpoint.open(source)
    plan = make_plan(checkpoint, load("text-only").recipe)
    written = make_output_config(checkpoint.config, plan, make_planned_weights(plan))
    return plan, {key: value for key, value in written.items() if key != "quantization_config"}


def copied(source: Path, output: Path, config: Config) -> Path:
    shutil.copytree(source, output)
    (output / "config.json").write_text(json.dumps(config))
    return output


def model(directory: Path) -> tuple[Any, dict[str, Any]]:
    with quiet_transformers():
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    return loaded.eval(), {kind: found for kind, found in info.items() if found}


def test_the_class_that_engines_know_computes_the_same(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("unified_text")
    _, config = text_only(source)
    assert (config["architectures"], config["model_type"]) == (["Gemma4ForCausalLM"], "gemma4_text")
    (unified, missed), (known, lost) = model(source), model(copied(source, tmp_path / "known", config))
    assert type(unified).__name__ == "Gemma4UnifiedForCausalLM"
    assert type(known).__name__ == "Gemma4ForCausalLM"
    assert missed == lost == {}
    ids = torch.randint(unified.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(unified(ids).logits, known(ids).logits)


@pytest.mark.parametrize("family", ["unified", "unified_text"])
def test_what_a_unified_config_leaves_to_its_defaults_is_written_out(
    family: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = checkpoints(family)
    config = json.loads((source / "config.json").read_text())
    text = config.get("text_config", config)
    for key in LEFT_TO_DEFAULTS:
        del text[key]
    bare = copied(source, tmp_path / "bare", config)
    plan, written = text_only(bare)
    unified = transformers.AutoConfig.for_model(**text | {"model_type": "gemma4_unified_text"}).to_dict()
    known = transformers.AutoConfig.for_model(**written).to_dict()
    said = {"model_type", "architectures", "dtype", "transformers_version", "eos_token_id"}
    assert {key: known[key] for key in unified.keys() - said} == {key: unified[key] for key in unified.keys() - said}
    assert (known["sliding_window"], known["hidden_size_per_layer_input"]) == (1024, 0)
    assert plan.architecture.class_name == "Gemma4ForCausalLM"
