"""The shipped checkpoints have learned something, so damage shows and four bits cost little."""

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.conversions import quantized
from helpers.grids import one_in
from helpers.reload import dequantized, reload
from transformers import AutoConfig, AutoTokenizer

from g4convert import verify
from g4convert.demo.trained import TRAINED, trained
from g4convert.errors import UsageError
from g4convert.forward.media import call
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.gemma4.family import Family
from g4convert.verification.probes.answers import answer_probes
from g4convert.verification.probes.suite import make_probes

LEARNED = (
    *("total", "compare", "weather", "time"),
    *("image_square", "image_wide", "image_tall", "image_padded"),
)
"""Probes that both get right; docs/guides/trained-models.md lists the others."""


@cache
def reference(family: Family) -> Model:
    return reload(trained(family))


@cache
def lessons(family: Family) -> tuple[Probe, ...]:
    """Probes with given answers that the model learned to give."""
    every_probe = make_probes(reference(family), trained(family))
    return tuple(probe for probe in every_probe if probe.name in {*LEARNED, "audio"})


@cache
def asked(family: Family) -> tuple[Probe, ...]:
    """Every other probe, answered by the model itself."""
    return answer_probes(reference(family), make_probes(reference(family), trained(family))[::4], max_new_tokens=8)


def predictions(model: Model, probes: tuple[Probe, ...]) -> torch.Tensor:
    """Log-probabilities of the positions that count, float64 [n, vocabulary]."""
    rows = [call(model, probe.arguments, use_cache=False).logits.flatten(0, 1)[probe.scored] for probe in probes]
    return torch.cat(rows).double().log_softmax(-1)


def perplexity(model: Model, probes: tuple[Probe, ...]) -> float:
    targets = torch.cat([probe.targets for probe in probes])
    return math.exp(-float(predictions(model, probes).gather(1, targets[:, None]).mean()))


@cache
def expected(family: Family) -> torch.Tensor:
    """The reference's predictions of `asked`."""
    return predictions(reference(family), asked(family))


def divergence(family: Family, candidate: Model) -> float:
    """KL(reference, candidate), nats per token of `asked`."""
    p, q = expected(family), predictions(candidate, asked(family))
    return float((p.exp() * (p - q)).sum(-1).mean())


def experts(model: Model) -> list[torch.nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "Gemma4TextExperts"]


@pytest.mark.parametrize("family", TRAINED)
def test_is_a_small_checkpoint_of_its_family(family: Family) -> None:
    directory = trained(family)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 4.2e6
    assert len(list(directory.glob("*.safetensors"))) >= 2
    text = json.loads((directory / "config.json").read_text())["text_config"]
    assert {"sliding_attention", "full_attention"} == set(text["layer_types"])
    assert "global_head_dim" in text  # spelled as published
    if family is Family.MOE:
        assert text["enable_moe_block"]
        assert text["attention_k_eq_v"]
        assert text["moe_intermediate_size"] % 32 == 0 != text["moe_intermediate_size"] % 128
    else:
        assert text["hidden_size_per_layer_input"]
        assert text["num_kv_shared_layers"]
        assert text["use_double_wide_mlp"]
    scalars = [layer.layer_scalar.item() for layer in reference(family).get_decoder().layers]
    assert 1 not in scalars


@pytest.mark.full
@pytest.mark.parametrize("family", TRAINED)
def test_answers_what_it_has_learned(family: Family) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained(family))
    own = answer_probes(reference(family), lessons(family), max_new_tokens=64)
    wrong = {
        given.name: (tokenizer.decode(probe.targets), tokenizer.decode(given.targets))
        for given, probe in zip(lessons(family), own, strict=True)
        if probe.targets.tolist() != given.targets.tolist()
    }
    assert len(own) == len(LEARNED) + (family is Family.E2B)
    assert not wrong
    assert perplexity(reference(family), lessons(family)) < 1.1


@pytest.mark.full
def test_routing_is_peaked_and_uses_every_expert() -> None:
    model = reload(trained(Family.MOE))
    routers = [module for module in model.modules() if type(module).__name__ == "Gemma4TextRouter"]
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for router in routers:
        router.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    predictions(model, asked(Family.MOE))
    for layer in range(len(routers)):
        probabilities, _, chosen = (torch.cat(each) for each in zip(*found[layer :: len(routers)], strict=True))
        ranked = probabilities.sort(descending=True).values
        assert ranked[:, :4].sum(-1).mean() > 0.9
        assert ranked[:, 0].mean() > 0.7
        share = torch.bincount(chosen.flatten(), minlength=16) / chosen.numel()
        assert 1 / 64 < float(share.min()) < float(share.max()) < 1 / 8


@pytest.mark.wide
@pytest.mark.parametrize("family", one_in(2, TRAINED))
def test_four_bits_cost_little_and_damage_shows(family: Family, tmp_path: Path) -> None:
    cost = {}
    for method in ("minmax", "mse"):
        quantized(trained(family), tmp_path / method, method=method)
        model = dequantized(trained(family), tmp_path / method)
        cost[method] = divergence(family, model)
        assert perplexity(model, lessons(family)) < 1.15
    assert 0 < cost["mse"] < cost["minmax"] < 0.05
    wrong = divergence(family, damaged(model))
    assert wrong > 50 * cost["mse"], (wrong, cost)
    assert perplexity(damaged(model), lessons(family)) > 5


@pytest.mark.wide
def test_what_the_guide_says_of_the_loss_is_measured(tmp_path: Path) -> None:
    quantized(trained(Family.MOE), tmp_path / "out", "w4a16-g32")
    metrics = verify(tmp_path / "out", reference=trained(Family.MOE), level="logits").metrics
    loss = metrics["loss"]
    text = " ".join((ROOT / "docs/guides/verify.md").read_text().split())
    said = re.search(
        r"mean KL of (\S+) \(interval (\S+) to (\S+)\), (\S+) % of the top tokens stay, and parity is", text
    )
    assert said is not None
    mean, low, high, share = map(float, said.groups())
    assert loss["kl_mean"] == pytest.approx(mean, rel=0.05)
    assert [loss["kl_low"], loss["kl_high"]] == pytest.approx([low, high], rel=0.1)
    assert 100 * loss["top1_agreement"] == pytest.approx(share, abs=0.5)
    assert metrics["parity"]["kl_mean"] < 1e-11


def damaged(model: Model) -> Model:
    """A copy with random experts, or random per-layer projections."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    weights = [weight for module in experts(found) for weight in (module.gate_up_proj, module.down_proj)]
    weights = weights or [layer.per_layer_projection.weight for layer in found.get_decoder().layers]
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=generator) * weight.std()
    return found


@pytest.mark.full
def test_two_experts_in_each_others_place_show(tmp_path: Path) -> None:
    quantized(trained(Family.MOE), tmp_path / "out")
    model = dequantized(trained(Family.MOE), tmp_path / "out")
    before = divergence(Family.MOE, model)
    for weight in (experts(model)[1].gate_up_proj, experts(model)[1].down_proj):
        weight.data[[3, 4]] = weight.data[[4, 3]]
    assert divergence(Family.MOE, model) > 3 * before


def test_other_families_have_none() -> None:
    with pytest.raises(UsageError, match="no trained dense checkpoint") as caught:
        trained(Family.DENSE)
    assert caught.value.hint == "there are moe and e2b"


@pytest.mark.full
def test_the_script_runs_again(tmp_path: Path) -> None:
    """Two steps on a text of our own: what comes out loads, and has the shipped config."""
    (tmp_path / "text.txt").write_text("Line1:1 In the morning the boats came back, and the market was full.\n" * 600)
    script = ROOT / "tools" / "train_fixtures.py"
    command = [sys.executable, script, tmp_path / "out", "--text", tmp_path / "text.txt", "--steps", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "1821744 parameters" in done.stdout
    for family in TRAINED:
        out = tmp_path / "out" / family
        reload(out)
        assert as_read(out) == as_read(trained(family))
        for name in ("chat_template.jinja", "processor_config.json", "tokenizer_config.json"):
            assert (out / name).read_bytes() == (trained(family) / name).read_bytes()


def as_read(directory: Path) -> Mapping[str, object]:
    """The config with its defaults: versions of transformers differ in what they write."""
    config: dict[str, object] = AutoConfig.from_pretrained(directory).to_dict()
    return {key: value for key, value in config.items() if key not in {"transformers_version", "_name_or_path"}}
