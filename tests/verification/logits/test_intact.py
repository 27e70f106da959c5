"""Stored references that are damaged, hostile or of another model: each a clear refusal."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.captured import store
from safetensors import safe_open
from safetensors.torch import save_file

from g4convert.errors import FormatError, InputError
from g4convert.forward.candidate import ProbeOutputs
from g4convert.forward.logits import HeldLogits
from g4convert.forward.probe import Probe
from g4convert.verification.logits import capture as capturing
from g4convert.verification.logits.capture import StoredReference
from g4convert.verification.logits.intact import DIGEST, digest

FACTS = "g4convert_reference"
Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any], Tensors], object]


class Model:
    """Two layers and twenty tokens."""

    model = None

    def run(self, probe: Probe) -> ProbeOutputs:
        """Answer at random."""
        tokens = probe.response.numel()
        states = {f"layers.{number}": torch.ones(tokens, 100) for number in range(2)}
        return ProbeOutputs(HeldLogits(torch.randn(len(probe.targets), 20)), layers=states)


CONFIG = SimpleNamespace(vocab_size=20, num_hidden_layers=2)
CONFIG.get_text_config = lambda: CONFIG


@pytest.fixture(params=["all logits", "the likeliest"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference of one prompt."""
    if request.param == "the likeliest":
        monkeypatch.setattr(capturing, "FULL_VOCABULARY", 10)
        monkeypatch.setattr(capturing, "TOP", 5)
    probe = Probe.of("one", "prose", {"input_ids": torch.arange(8)[None]}, torch.arange(8)[None] > 3)
    path = tmp_path / "ref.safetensors"
    store(Model(), [probe], path, source="abc")
    return path


def test_a_sound_one_is_taken(stored: Path) -> None:
    StoredReference.open(stored).check_fits(stored, CONFIG)


def test_a_changed_bit_anywhere_is_found(stored: Path) -> None:
    sound, chance = stored.read_bytes(), random.Random(0)  # noqa: S311 - nothing secret
    for _ in range(150):
        at, bit = chance.randrange(len(sound)), chance.randrange(8)
        damaged = bytearray(sound)
        damaged[at] ^= 1 << bit
        stored.write_bytes(damaged)
        with pytest.raises(InputError):
            StoredReference.open(stored)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_one_that_is_cut_is_found(share: float, stored: Path) -> None:
    sound = stored.read_bytes()
    stored.write_bytes(sound[: int(len(sound) * share)])
    with pytest.raises(InputError, match="cannot be read as a stored reference"):
        StoredReference.open(stored)


def rewritten(path: Path, change: Change) -> None:
    """Change a reference, with the digest that belongs to it."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads((file.metadata() or {})[FACTS])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not iterable
    change(facts, tensors)
    facts.pop(DIGEST)
    metadata = {FACTS: json.dumps(facts | {DIGEST: digest(facts, tensors)})}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def put(name: str, tensor: torch.Tensor) -> Change:
    return lambda _, tensors: tensors.update({name: tensor})


def say(**facts: object) -> Change:
    return lambda said, _: said.update(facts)


IDS = {"mapping": {"input_ids": {"tensor": "0.arguments.input_ids"}}}


@pytest.mark.parametrize(
    "change",
    [
        put("0.response", torch.ones(1, 8)),
        put("0.response", torch.ones(8, dtype=torch.bool)),
        put("0.response", torch.ones(1, 8, dtype=torch.bool)),
        put("0.targets", torch.ones(3, dtype=torch.int64)),
        put("0.targets", torch.ones(4)),
        put("0.arguments.input_ids", torch.ones(8, dtype=torch.int64)),
        put("0.arguments.input_ids", torch.ones(1, 8)),
        put("0.logits", torch.ones(4)),
        put("0.logits", torch.ones(5, 20)),
        put("0.layers.0", torch.ones(7, 64)),
        put("0.layers.0", torch.ones(8)),
        put("projection.100", torch.ones(99, 64)),
        put("projection.x", torch.ones(100, 64)),
        lambda _, tensors: tensors.pop("0.targets"),
        say(probes=[]),
        say(probes=3),
        say(probes={"a": 1}),
        say(probes=[["one", "prose"]]),
        say(probes=[["one", "prose", IDS], ["one", "prose", IDS]]),
        say(probes=[["one", "prose", {"tensor": "0.nothing"}]]),
        say(probes=[["one", "prose", {"value": 3}]]),
        say(probes=[["one", "prose", 3]]),
        say(probes=[["one", "prose", {"mapping": [1]}]]),
        say(metrics_version="\x1b[2J" * 50),
    ],
)
def test_other_forms_are_refused_though_the_digest_is_right(change: Change, stored: Path) -> None:
    rewritten(stored, change)
    with pytest.raises(InputError) as refused:
        StoredReference.open(stored)
    assert len(refused.value.message) < 400


def test_metadata_that_is_nested_without_end_is_refused(stored: Path) -> None:
    save_file({"x": torch.zeros(1)}, stored, metadata={FACTS: '{"a":' * 100_000})
    with pytest.raises(FormatError, match="nested too deep"):
        StoredReference.open(stored)


@pytest.mark.parametrize("other", [{"vocab_size": 7}, {"num_hidden_layers": 3}], ids=["vocabulary", "layers"])
def test_one_of_another_model_is_refused(other: Mapping[str, int], stored: Path) -> None:
    config = SimpleNamespace(**vars(CONFIG) | other)
    config.get_text_config = lambda: config
    with pytest.raises(InputError, match="of another model") as refused:
        StoredReference.open(stored).check_fits(stored, config)
    assert all(line.startswith("one: ") for line in refused.value.offenders)
