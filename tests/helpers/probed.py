"""Random models by family with their probes, and what they compute on them."""

from collections.abc import Mapping

import pytest
import torch
from conftest import Checkpoints

from g4convert.forward.media import call
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.verification.probes.suite import make_probes
from helpers.reload import reload

TEXT_KINDS = {"prose", "code", "tools", "non_latin", "long", "batch"}
MEDIA_KINDS = {"image", "audio", "video"}
FAMILIES = {
    "moe": TEXT_KINDS | {"image", "video"},
    "dense": TEXT_KINDS | {"image", "video"},
    "unified": TEXT_KINDS | MEDIA_KINDS,
    "e2b": TEXT_KINDS | MEDIA_KINDS,
    "text": TEXT_KINDS,
    "unified_text": TEXT_KINDS,
}


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints):  # noqa: ANN201
    """Random models by family, in fp32, with their probes; a test that changes one must change it back."""
    made: dict[str, tuple[Model, tuple[Probe, ...]]] = {}

    def get(family: str) -> tuple[Model, tuple[Probe, ...]]:
        if family not in made:
            model = reload(checkpoints(family))
            made[family] = model, make_probes(model, checkpoints(family))
        return made[family]

    return get


def counted(model: Model, probe: Probe) -> torch.Tensor:
    """Logits of the positions that count, [n, vocabulary]."""
    return call(model, probe.arguments, use_cache=False).logits.flatten(0, 1)[probe.scored]


def by_name(probes: tuple[Probe, ...]) -> Mapping[str, Probe]:
    return {probe.name: probe for probe in probes}
