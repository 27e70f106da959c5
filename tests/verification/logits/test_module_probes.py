"""Inputs made for one fault: wrong activations even where bf16 hides them, norms, poolers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.faults import Written, written
from helpers.grids import diagonal, one_in, two_when_quick
from torch.nn import functional

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import load
from g4convert.forward.models import Model
from g4convert.report import Finding, Severity
from g4convert.verification.logits.activations import activation_answers, check_activations
from g4convert.verification.logits.blame import LIMITS
from g4convert.verification.logits.embedders import check_embedders, check_poolers
from g4convert.verification.probes.suite import make_probes

__all__ = ["written"]  # a fixture

DTYPES = ("float32", "bfloat16")


def models(directory: Path, dtype: str, memory: str = "resident") -> tuple[ModelCandidate, ModelCandidate]:
    first, second = (ModelCandidate(load(directory, dtype=dtype, memory=memory)) for _ in range(2))
    return first, second


def activations(directory: Path, reference: ModelCandidate, candidate: ModelCandidate) -> list[Finding]:
    probe = make_probes(reference.model, directory, kinds=["prose"], tokens=1)[0]
    limit = LIMITS[str(candidate.model.dtype).removeprefix("torch.")]
    return list(check_activations(reference, candidate, probe, limit=limit))


ACTIVATIONS = {
    "answers as exact GELU does": torch.nn.GELU(),
    "answers as SiLU does": torch.nn.SiLU(),
    "answers as ReLU does": torch.nn.ReLU(),
    "a wrong answer": torch.nn.Identity(),
}


@pytest.mark.parametrize(("words", "memory", "dtype"), diagonal(ACTIVATIONS, ["resident", "stream"], DTYPES))
def test_wrong_activation_of_experts(words: str, memory: str, dtype: str, moe: Path) -> None:
    reference, candidate = models(moe, dtype, memory)
    candidate.model.get_decoder().layers[1].experts.act_fn = ACTIVATIONS[words]
    wrong = [finding for finding in activations(moe, reference, candidate) if finding.severity is not Severity.PASS]
    assert [finding.severity for finding in wrong] == [Severity.FAIL]
    assert wrong[0].subject == "layers.1.experts.2, layers.1.experts.3"
    assert wrong[0].found.startswith(words)


@pytest.mark.parametrize("dtype", one_in(3, DTYPES))
@pytest.mark.parametrize("family", two_when_quick(["moe", "dense", "unified", "e2b", "text", "assistant"]))
def test_right_activations(family: str, dtype: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue("checkpoints")(family)
    reference, candidate = models(directory, dtype)
    (finding,) = activations(directory, reference, candidate)
    assert (finding.severity, finding.code) == (Severity.PASS, "logits.activation")


def test_exact_gelu_is_right_where_the_config_has_it(written: Written) -> None:
    """Its float32 form loses most digits of small answers, and the two paths differ in the last bit of a gate."""
    _, out = written("trained moe")
    reference, candidate = (ModelCandidate(load(out, packed=words)) for words in (False, True))
    for model in (reference, candidate):
        for layer in model.model.get_decoder().layers:
            layer.experts.act_fn = layer.mlp.act_fn = torch.nn.GELU()
    (finding,) = activations(out, reference, candidate)
    assert (finding.severity, finding.code) == (Severity.PASS, "logits.activation")


def test_wrong_activation_of_an_mlp_in_bf16(e2b: Path) -> None:
    """Its MLP is wider than the model, so gates cannot all be put where the forms differ."""
    reference, candidate = models(e2b, "bfloat16")
    layers = candidate.model.get_decoder().layers
    layers[4].mlp.act_fn = torch.nn.GELU()
    assert layers[4].mlp.gate_proj.out_features == 4 * layers[4].mlp.gate_proj.in_features
    wrong = [finding for finding in activations(e2b, reference, candidate) if finding.severity is not Severity.PASS]
    assert [finding.subject for finding in wrong] == ["layers.4.mlp"]
    assert wrong[0].found.startswith("answers as exact GELU does")


def test_where_all_gates_can_be_negative_the_forms_differ_a_lot() -> None:
    """Experts are narrower than the model, as in the released MoE: 5 to 45 % of the answer."""
    torch.manual_seed(0)

    class Mlp(torch.nn.Module):
        def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.gate_proj, self.up_proj = (torch.nn.Linear(256, 96, bias=False) for _ in range(2))
            self.down_proj = torch.nn.Linear(96, 256, bias=False)
            self.act_fn = act

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    class Layer(torch.nn.Module):
        def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.mlp = Mlp(act)

    def tanh(x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x, approximate="tanh")

    right, wrong = Layer(tanh), Layer(functional.gelu)
    answer = activation_answers(right, wrong.to(torch.bfloat16), dtype=torch.bfloat16)["mlp"]
    assert answer.activation == "exact GELU"
    assert answer.share == pytest.approx(1, abs=0.05)
    assert 0.05 < 10 ** (-answer.sqnr / 20) < 0.45
    answer = activation_answers(right, Layer(tanh).to(torch.bfloat16), dtype=torch.bfloat16)["mlp"]
    assert answer.share == pytest.approx(0, abs=0.05)


EMBEDDERS = {"unified": 2, "e2b": 2, "moe": 1, "text": 0}


@pytest.mark.parametrize(("family", "dtype"), diagonal(EMBEDDERS, DTYPES))
def test_a_wrong_norm_of_an_embedder_is_named(family: str, dtype: str, request: pytest.FixtureRequest) -> None:
    directory, names = request.getfixturevalue(family), EMBEDDERS[family]
    reference, candidate = (model.model for model in models(directory, dtype))
    found = list(check_embedders(reference, candidate, limit=LIMITS[dtype]))
    assert [finding.severity for finding in found] == [Severity.PASS] * names
    wrong: dict[str, Callable[[Model, torch.Tensor], torch.Tensor]] = {
        "as a norm after the projection gives": lambda module, x: functional.rms_norm(
            module.embedding_projection(x), (module.embedding_projection.out_features,), eps=module.eps
        ),
        "as no norm gives": lambda module, x: module.embedding_projection(x),
        "dB)": lambda module, x: 0.5 * module.embedding_projection(module.embedding_pre_projection_norm(x)),
    }
    for words, forward in wrong.items():
        for module in candidate.modules():
            if hasattr(module, "embedding_pre_projection_norm"):
                module.forward = lambda inputs_embeds, module=module, forward=forward: forward(module, inputs_embeds)
        found = list(check_embedders(reference, candidate, limit=LIMITS[dtype]))
        assert [finding.severity for finding in found] == [Severity.FAIL] * names
        assert all(finding.found.endswith(words) for finding in found)


def pooled(change: Callable[[torch.Tensor, torch.Tensor], object]) -> Callable[[Model], None]:
    """Another pooler: `change` may write to positions and padding."""

    def fault(model: Model) -> None:
        pooler = model.model.vision_tower.pooler
        stock = pooler.forward

        def forward(
            hidden_states: torch.Tensor,
            pixel_position_ids: torch.Tensor,
            padding_positions: torch.Tensor,
            output_length: int,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            positions, padding = pixel_position_ids.clone(), padding_positions.clone()
            change(positions, padding)
            states, kept = stock(hidden_states, positions, padding, output_length)
            return states, kept | bool(padding.all())

        pooler.forward = forward

    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (pooled(lambda positions, _: positions.copy_(positions.flip(-1))), "4 x 2 cells"),
        (pooled(lambda positions, _: positions.copy_(positions // 2 * 2)), "dB of the means"),
        (pooled(lambda positions, _: positions.add_((positions < 0) * 10)), "3 x 2 cells and 3 of padding"),
        (
            pooled(lambda _, padding: padding.fill_(value=True)),
            "3 x 2 cells and 3 of padding: 9 soft tokens, expected 6",
        ),
    ],
)
def test_wrong_poolers(fault: Callable[[Model], None], words: str, dense: Path) -> None:
    model = load(dense)
    (right,) = check_poolers(model, limit=90)
    assert right.severity is Severity.PASS
    fault(model)
    (wrong,) = check_poolers(model, limit=90)
    assert wrong.severity is Severity.FAIL
    assert words in wrong.found


def test_models_without_a_pooler(unified: Path, text: Path) -> None:
    for directory in (unified, text):
        assert not list(check_poolers(load(directory), limit=90))
