"""A model of which only the part that runs is in memory: the same bits, and each part read once for all probes."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import torch
from conftest import Checkpoints, Packed
from helpers.grids import diagonal
from helpers.prompts import output_of, prompts, whole

from g4convert import devices
from g4convert.demo import Family
from g4convert.forward.candidate import ModelCandidate, ProbeOutputs, run_all
from g4convert.forward.load import DTypeName, load
from g4convert.forward.models import Model, cache_name
from g4convert.forward.probe import Probe
from g4convert.forward.streaming import Stream, run_together, stream_of


class Form(Protocol):
    """Gives the directory of a tiny checkpoint, plain or packed."""

    def __call__(self, family: str, form: str) -> Path:
        """Make it, or find the one made before."""
        ...


@pytest.fixture
def form(checkpoints: Checkpoints, packed: Packed) -> Form:
    return lambda family, form: checkpoints(family) if form == "plain" else packed(family)


def live_layers(model: Model) -> list[int]:
    """The decoder layers that have any tensor in memory."""
    return [
        number
        for number, layer in enumerate(model.get_decoder().layers)
        if any(not tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
    ]


def live_parts(model: Model, stream: Stream) -> list[str]:
    """The parts of those loaded so far that have a stored tensor in memory."""
    return [
        name
        for name in stream.loads
        if any(not tensor.is_meta for tensor in model.get_submodule(name).state_dict().values())
    ]


def is_mapped(tensor: torch.Tensor) -> bool:
    """Return True if a tensor's memory is a mapped weight file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.endswith(".safetensors")
    return False


def forward(model: Model, probe: Probe) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**probe.arguments, use_cache=False)[output_of(probe)]
    return output


def equal(one: ProbeOutputs, other: ProbeOutputs) -> bool:
    """Return True if logits and everything inside are the same bits."""
    pairs = [(one.logits, other.logits)]
    if one.raw_logits is not None and other.raw_logits is not None:
        pairs.append((one.raw_logits, other.raw_logits))
    for first, second in (
        (one.layers, other.layers),
        (one.embedders, other.embedders),
        (one.routers, other.routers),
        (one.expert_hits, other.expert_hits),
    ):
        if first.keys() != second.keys():
            return False
        pairs += [(first[name], second[name]) for name in first]
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(("family", "kind", "dtype"), diagonal(Family, ("packed", "plain"), ("float32", "bfloat16")))
def test_streamed_is_resident_and_each_part_is_read_once(
    family: Family, kind: str, dtype: DTypeName, form: Form
) -> None:
    directory = form(family, kind)
    resident, streamed = load(directory, dtype=dtype), load(directory, dtype=dtype, memory="stream")
    stream = stream_of(streamed)
    assert stream is not None
    assert stream_of(resident) is None
    assert live_layers(streamed) == []
    probes = prompts(resident)
    expected, found = run_all(ModelCandidate(resident), probes), run_all(ModelCandidate(streamed), probes)
    assert all(map(equal, expected, found))
    assert set(stream.loads.values()) == {1}
    layers = len(streamed.get_decoder().layers)
    assert sum(".layers." in name for name in stream.loads) == layers
    assert live_parts(streamed, stream) == []
    assert live_layers(streamed) == []
    for prompt in probes:  # and alone
        assert torch.equal(forward(resident, prompt), forward(streamed, prompt)), prompt.bucket
    assert live_parts(streamed, stream) == []


def test_dense_weights_of_a_packed_checkpoint_stream_too(form: Form) -> None:
    directory = form("moe", "packed")
    resident, streamed = load(directory, packed=False), load(directory, packed=False, memory="stream")
    for prompt in prompts(resident):
        assert torch.equal(forward(resident, prompt), forward(streamed, prompt))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_with_padding_on_the_left(attention: str, moe: Path) -> None:
    resident, streamed = load(moe), load(moe, memory="stream")
    ids = torch.randint(20, 400, (3, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7], mask[2, :30] = 0, 0
    for model in (resident, streamed):
        model.set_attn_implementation(attention)
    prompt = whole("batch", {"input_ids": ids, "attention_mask": mask})
    assert torch.equal(forward(resident, prompt), forward(streamed, prompt))


def test_one_part_at_most_is_in_memory(e2b: Path) -> None:
    model = load(e2b, memory="stream")
    tower = model.model.vision_tower
    seen = []

    def look(_: torch.nn.Module, __: object, ___: object) -> None:
        seen.append((live_layers(model), any(not tensor.is_meta for tensor in tower.parameters())))

    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_hook(look)
    tower.encoder.register_forward_hook(look)
    probes = prompts(model)
    run_all(ModelCandidate(model), probes)
    in_layers = [layers for layers, in_tower in seen if not in_tower]
    assert in_layers == [[number] for number in range(6) for _ in probes]
    assert [layers for layers, in_tower in seen if in_tower] == [[]]


def test_tables_are_looked_up_in_the_file(e2b: Path) -> None:
    """Not a copy in float32: of the released E2B, the table of per-layer embeddings alone would take 9 GB."""
    model = load(e2b, memory="stream")
    tables = [model.get_input_embeddings(), model.get_per_layer_input_embeddings()]
    assert all(table.weight.dtype is torch.bfloat16 for table in tables)
    ids = torch.tensor([[5, 9, 5, 77]])
    found = [table(ids) for table in tables]
    whole = load(e2b)
    expected = [table(ids) for table in (whole.get_input_embeddings(), whole.get_per_layer_input_embeddings())]
    assert all(map(torch.equal, expected, found))
    assert all(table.weight.dtype is torch.bfloat16 for table in tables)


def test_what_needs_no_cast_is_the_file(moe: Path) -> None:
    model = load(moe, dtype="bfloat16", memory="stream")
    weight = model.get_input_embeddings().weight
    assert model.lm_head.weight is weight
    assert is_mapped(weight)
    assert not is_mapped(load(moe).lm_head.weight)


def test_decoding_with_a_cache_in_lockstep(dense: Path) -> None:
    """Calls of several forwards each: prefill, then three tokens, each pass reading every layer once."""
    resident, streamed = load(dense), load(dense, memory="stream")

    def decode(model: Model, ids: torch.Tensor) -> torch.Tensor:
        name = cache_name(model)
        with torch.no_grad():
            out = model(input_ids=ids[:, :-3], use_cache=True)
            steps = [out.logits]
            for position in range(ids.shape[1] - 3, ids.shape[1]):
                token = ids[:, position : position + 1]
                out = model(input_ids=token, use_cache=True, **{name: out[name]})
                steps.append(out.logits)
        return torch.cat(steps, dim=1)

    generator = torch.Generator().manual_seed(2)
    batches = [torch.randint(20, 400, (1, length), generator=generator) for length in (20, 31, 8)]
    expected = [decode(resident, ids) for ids in batches]
    found = run_together(streamed, [partial(decode, streamed, ids) for ids in batches])
    assert all(map(torch.equal, expected, found))
    stream = stream_of(streamed)
    assert stream is not None
    assert {count for name, count in stream.loads.items() if ".layers." in name} == {4}


def test_an_error_ends_all_calls(moe: Path) -> None:
    model = load(moe, memory="stream")
    (prompt, *_) = prompts(model)
    before = threading.active_count()

    def fail() -> torch.Tensor:
        forward(model, prompt)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run_together(model, [partial(forward, model, prompt), fail, partial(forward, model, prompt)])
    stream = stream_of(model)
    assert stream is not None
    assert live_parts(model, stream) == []
    assert threading.active_count() == before
    assert torch.equal(forward(model, prompt), forward(load(moe), prompt))


def test_an_error_inside_a_layer_ends_all_calls(moe: Path) -> None:
    model = load(moe, memory="stream")
    (prompt, *_) = prompts(model)
    handle = model.get_decoder().layers[1].mlp.register_forward_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_together(model, [partial(forward, model, prompt)] * 3)
    handle.remove()
    assert live_layers(model) == []


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_gradients_are_as_where_it_is_called(moe: Path) -> None:
    model = load(moe, memory="stream")
    assert run_together(model, [torch.is_grad_enabled, torch.is_grad_enabled]) == [True, True]
    with torch.no_grad():
        assert run_together(model, [torch.is_grad_enabled, torch.is_grad_enabled]) == [False, False]


@pytest.mark.parametrize(("free", "streams"), [(10**12, False), (10**5, True)])
def test_auto_goes_by_the_free_memory(free: int, moe: Path, monkeypatch: pytest.MonkeyPatch, *, streams: bool) -> None:
    monkeypatch.setattr(devices, "_free_memory", lambda: iter([free]))
    assert (stream_of(load(moe, memory="auto")) is not None) is streams
    assert stream_of(load(moe, memory="resident")) is None


def test_free_memory_is_read() -> None:
    assert all(nbytes > 0 for nbytes in devices._free_memory())  # noqa: SLF001 -- what is_roomy reads
    assert devices.is_roomy(1)
    assert not devices.is_roomy(10**15)


def test_results_keep_their_order(unified: Path) -> None:
    """A probe with sound reaches its layers like the others; what is kept of each comes back in order."""
    model = load(unified, memory="stream")
    probes = prompts(model)
    kinds = run_all(ModelCandidate(model, inside=False), probes, lambda prompt, out: (prompt, out.logits.shape[0]))
    assert [(prompt.bucket, rows) for prompt, rows in kinds] == [("text", 40), ("image", 48), ("audio", 62)]


def test_a_candidate_shows_what_happens_inside(moe: Path) -> None:
    model = load(moe)
    text, image = (ModelCandidate(model).run(prompt) for prompt in prompts(model))
    assert text.raw_logits is not None
    assert torch.equal(text.logits, torch.tanh(text.raw_logits / 30) * 30)
    assert list(text.layers) == ["layers.0", "layers.1", "layers.2"]
    assert {tuple(states.shape) for states in text.layers.values()} == {(40, 128)}
    assert text.embedders == {}
    assert {name: tuple(rows.shape) for name, rows in image.embedders.items()} == {
        "vision_tower": (6, 64),
        "embed_vision": (6, 128),
    }
    assert text.routers["layers.1"].shape == (40, 3)
    assert text.routers["layers.1"].dtype is torch.int64
    assert {int(hits.sum()) for hits in text.expert_hits.values()} == {40 * 3}
    bare = ModelCandidate(model, inside=False).run(prompts(model)[0])
    assert torch.equal(bare.logits, text.logits)
    assert bare.layers == {}
    assert not any(module._forward_hooks for module in model.modules())  # noqa: SLF001 -- they are gone again


def counting(probe: Probe, *rows: int) -> Probe:
    """The probe, of which a few rows count."""
    response = torch.zeros_like(probe.response).flatten()
    response[[*rows]] = True
    return replace(probe, response=response.view(probe.response.shape), targets=probe.targets[[*rows]])


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_the_head_works_on_the_rows_that_count(memory: str, moe: Path) -> None:
    model = load(moe, memory=memory)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: seen.append(output.shape[-2]))
    asked = [counting(prompt, 3, 7, number) for number, prompt in enumerate(prompts(model), 8)]
    every = run_all(ModelCandidate(model), prompts(model))
    found = run_all(ModelCandidate(model), asked)
    assert seen
    assert sum(seen) == 0  # in a forward it has none: logits are made of the states, some rows at a time
    assert [len(one.logits) for one in found] == [3] * len(asked)
    for one, other, prompt in zip(every, found, asked, strict=True):
        assert torch.allclose(one.logits[prompt.scored], other.logits, atol=1e-4)
        assert torch.allclose(one.raw_logits[prompt.scored], other.raw_logits, atol=1e-4)
        assert torch.equal(one.layers["layers.2"], other.layers["layers.2"])


def test_a_fault_planted_in_a_candidate_shows(moe: Path) -> None:
    reference, faulty = load(moe), load(moe)
    faulty.model.language_model.layers[1].experts.act_fn = torch.nn.SiLU()
    (prompt, *_) = prompts(reference)
    expected, found = ModelCandidate(reference).run(prompt), ModelCandidate(faulty).run(prompt)
    same = {name: torch.equal(expected.layers[name], found.layers[name]) for name in expected.layers}
    assert same == {"layers.0": True, "layers.1": False, "layers.2": False}
