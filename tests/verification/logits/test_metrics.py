"""Scores of tokens, sums over probes: against plain arithmetic, and exact where both are the same."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from helpers.prompts import first_of_each

from g4convert.forward.candidate import ModelCandidate, ProbeOutputs, run_all
from g4convert.forward.load import load
from g4convert.forward.logits import Head, HeadLogits, HeldLogits, Page
from g4convert.forward.probe import Probe
from g4convert.report import Report
from g4convert.verification import gates, profiles
from g4convert.verification.logits import scores
from g4convert.verification.logits.kept import KeptProbe, Projection
from g4convert.verification.logits.metrics import HISTOGRAM_EDGES, Comparison, Metrics
from g4convert.verification.logits.pairs import score_pairs
from g4convert.verification.logits.scores import TokenScores, cosine, score, score_top, top_logits
from g4convert.verification.logits.states import RouterSums, StateMetrics, StateSums
from g4convert.verification.probes.suite import make_probes

VOCABULARY = 50


def drawn(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probe(name: str = "one", bucket: str = "prose", *, rows: int = 2, tokens: int = 12, seed: int = 0) -> Probe:
    """A batch whose last tokens are answers; the first row has padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    answers = (torch.arange(tokens) >= tokens // 2).expand(rows, tokens)
    return Probe.of(name, bucket, {"input_ids": ids, "attention_mask": mask}, answers)


def outputs(of: Probe, *, seed: int = 0, noise: float = 0.0) -> ProbeOutputs:
    """Logits before and after softcap, two layers and a router, with noise on all."""
    t = of.response.numel()
    raw = (drawn(t, VOCABULARY, seed=seed) + noise * drawn(t, VOCABULARY, seed=seed + 100, scale=1))[of.scored]
    layers = {
        f"layers.{n}": drawn(t, 96, seed=seed + n) + noise * drawn(t, 96, seed=seed + 50 + n, scale=1) for n in (0, 1)
    }
    routers = {"layers.0": drawn(t, 8, seed=seed).add(noise * drawn(t, 8, seed=7)).topk(2).indices}
    return ProbeOutputs(
        HeldLogits(30 * (raw / 30).tanh(), raw), layers, {"embed_vision": drawn(6, 96, seed=seed)}, routers
    )


def compared(pairs: list[tuple[Probe, ProbeOutputs, ProbeOutputs]], **options: object) -> Metrics:
    comparison = Comparison(experts=8, **options)
    for one, reference, candidate in pairs:
        comparison.add(one, KeptProbe.of(one, reference), candidate)
    return comparison.metrics()


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    a, b, targets = drawn(7, VOCABULARY), drawn(7, VOCABULARY, seed=1), torch.arange(7)
    found = score(a, b, targets)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    assert torch.allclose(found.kl, (p * (p / q).log()).sum(-1), rtol=1e-12)
    assert torch.allclose(found.candidate_logprob.exp(), q[torch.arange(7), targets])
    assert torch.equal(found.agrees, p.argmax(-1) == q.argmax(-1))
    assert torch.allclose(found.confidence, p.amax(-1))
    assert torch.allclose(found.difference, (a - b).abs().amax(-1).double())


def test_a_reference_against_itself_is_exact() -> None:
    logits = drawn(9, VOCABULARY, scale=12.0)
    same = score(logits, logits.clone(), torch.arange(9))
    assert bool((same.kl == 0).all())
    assert bool((same.cosine == 1).all())
    assert bool((same.difference == 0).all())
    assert bool(same.agrees.all())
    one = probe()
    found = compared([(one, outputs(one), outputs(one))])
    zero = ("kl_mean", "kl_low", "kl_high", "kl_median", "kl_p99", "kl_p999", "kl_max", "rms_dp", "logit_max_diff")
    unity = ("top1_agreement", "ppl_ratio", "logit_cosine", "router_jaccard_min")
    assert {found.values[name] for name in zero} == {0}
    assert {found.values[name] for name in unity} == {1}
    assert {layer.sqnr for layer in (*found.layers, *found.embedders)} == {float("inf")}
    assert {layer.cosine for layer in (*found.layers, *found.embedders)} == {1}
    assert (found.nonfinite, found.reference_nonfinite) == (0, 0)


def test_a_real_model_against_itself_is_exact(e2b: Path) -> None:
    model = ModelCandidate(load(e2b))
    probes = first_of_each(make_probes(model.model, e2b, kinds=["prose", "batch", "image"], tokens=1))
    comparison = Comparison()
    for one, kept in zip(probes, run_all(model, probes, KeptProbe.of), strict=True):
        comparison.add(one, kept, model.run(one))
    found = comparison.metrics()
    assert (found.kl_max, found.rms_dp, found.logit_max_diff, found.ppl_ratio, found.logit_cosine) == (0, 0, 0, 1, 1)
    assert found.sqnr_min == float("inf")
    assert len(found.layers) == 6
    assert found.tokens == sum(len(one.scored) for one in probes)


def test_small_differences_are_not_lost_in_rounding() -> None:
    a = drawn(4, VOCABULARY).double()
    b = a + 1e-6 * drawn(4, VOCABULARY, seed=3).double()
    p = a.softmax(-1)
    expected = 0.5 * ((p * (b - a) ** 2).sum(-1) - (p * (b - a)).sum(-1) ** 2)
    assert torch.allclose(score(a, b, torch.zeros(4, dtype=torch.int64)).kl, expected, rtol=1e-3, atol=0)
    assert float(expected.max()) < 1e-11


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, targets = drawn(11, VOCABULARY), drawn(11, VOCABULARY, seed=1), torch.arange(11)
    whole = score(a, b, targets)
    top = score_top(top_logits(a, targets, 5), b, targets)
    monkeypatch.setattr(scores, "_ELEMENTS", 3 * VOCABULARY)
    for first, second in ((whole, score(a, b, targets)), (top, score_top(top_logits(a, targets, 5), b, targets))):
        for name in ("kl", "agrees", "confidence", "difference", "candidate_logprob"):
            assert torch.equal(getattr(first, name), getattr(second, name))


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, targets = drawn(11, VOCABULARY), drawn(11, VOCABULARY, seed=1), torch.arange(11)
    alone = score(a, b, targets)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = score(a, b, targets)
    for name in ("kl", "agrees", "confidence", "difference", "candidate_logprob"):
        assert torch.equal(getattr(alone, name), getattr(together, name))


def test_what_is_not_finite_is_counted_and_never_passes() -> None:
    one = probe()
    broken = outputs(one)
    broken.logits[2, 5] = torch.nan
    found = compared([(one, outputs(one), broken)])
    assert found.nonfinite == 1
    assert found.kl_max == found.kl_mean == found.logit_max_diff == float("inf")
    assert found.top1_agreement < 1
    found = compared([(one, broken, outputs(one))])
    assert found.reference_nonfinite == 1
    assert found.kl_mean != found.kl_mean  # nan
    for finding in gates.judge(found.values, profiles.load("parity"), None):
        assert finding.severity != "pass"
    Report((), ("logits",), asdict(found)).to_json()


def test_top_logits_bound_the_kl_from_below() -> None:
    a, b, targets = drawn(20, VOCABULARY), drawn(20, VOCABULARY, seed=1), torch.arange(20)
    full = score(a, b, targets)
    bounds = [score_top(top_logits(a, targets, k), b, targets) for k in (4, 12, VOCABULARY)]
    assert bool((bounds[0].kl <= bounds[1].kl + 1e-6).all())
    assert bool((bounds[1].kl <= full.kl + 1e-6).all())
    assert torch.allclose(bounds[2].kl, full.kl, atol=1e-6)
    for bound in bounds:
        assert torch.equal(bound.agrees, full.agrees)
        assert torch.allclose(bound.reference_logprob, full.reference_logprob, atol=1e-5)
        assert bool((bound.difference <= full.difference + 1e-5).all())
        assert bool(bound.cosine.isnan().all())
    same = score_top(top_logits(a, targets, 12), a, targets)
    assert float(same.kl.max()) < 1e-6
    assert float(same.difference.max()) < 1e-5


def test_tail_is_taken_as_one() -> None:
    a = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    b = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    p, q = a.double().softmax(-1)[0], b.double().softmax(-1)[0]
    parts = [(p[0], q[0]), (p[1], q[1]), (p[2] + p[3], q[2] + q[3])]
    expected = sum(float(x * (x / y).log()) for x, y in parts)
    target = torch.tensor([3])
    assert float(score_top(top_logits(a, target, 2), b, target).kl) == pytest.approx(expected, abs=1e-6)


def test_numbers_of_a_comparison() -> None:
    one, other = probe(), probe("two", "code", seed=5, rows=3)
    pairs = [(of, outputs(of, seed=n), outputs(of, seed=n, noise=0.4)) for n, of in enumerate((one, other))]
    found = compared(pairs)
    by_hand = TokenScores.cat(
        [
            score(
                reference.logits,
                candidate.logits,
                of.targets,
                raw=(reference.raw_logits, candidate.raw_logits),
            )
            for of, reference, candidate in pairs
        ]
    )
    kl = by_hand.kl.sort().values
    assert (found.tokens, found.sequences) == (30, 5)
    assert found.kl_mean == pytest.approx(float(kl.mean()))
    assert (found.kl_median, found.kl_p99, found.kl_max) == (float(kl[14]), float(kl[29]), float(kl[29]))
    assert found.kl_low < found.kl_mean < found.kl_high
    ratio = (by_hand.reference_logprob.mean() - by_hand.candidate_logprob.mean()).exp()
    assert found.ppl_ratio == pytest.approx(float(ratio))
    assert found.ppl == pytest.approx(float((-by_hand.reference_logprob.mean()).exp()))
    dp = by_hand.candidate_logprob.exp() - by_hand.reference_logprob.exp()
    assert found.rms_dp == pytest.approx(float((dp**2).mean().sqrt()))
    raws = [(reference.raw_logits, candidate.raw_logits) for _, reference, candidate in pairs]
    largest = max(float((a - b).abs().max()) for a, b in raws)
    assert found.logit_max_diff == pytest.approx(largest)
    assert [(bucket.name, bucket.tokens) for bucket in found.buckets] == [("prose", 12), ("code", 18)]
    assert [item.name for item in found.probes] == ["one", "two"]
    assert sum(bucket.tokens * bucket.kl_mean for bucket in found.buckets) == pytest.approx(30 * found.kl_mean)
    assert sum(item.tokens for item in found.by_confidence) == 30
    assert sum(item.tokens for item in found.by_confidence if item.low >= 0.95) == found.confident_tokens
    assert sum(found.kl_histogram) == 30
    assert len(found.kl_histogram) == len(HISTOGRAM_EDGES) - 1
    bin_ = next(place for place, count in enumerate(found.kl_histogram) if count)
    assert HISTOGRAM_EDGES[bin_] <= float(kl[0]) < HISTOGRAM_EDGES[bin_ + 1]


def test_padding_does_not_count() -> None:
    one = probe()
    reference, candidate = outputs(one), outputs(one)
    candidate.layers["layers.1"][~one.attended] = 1e3
    found = compared([(one, reference, candidate)])
    assert found.kl_max == 0
    assert found.sqnr_min == float("inf")
    candidate.layers["layers.1"][5] += 1
    assert compared([(one, reference, candidate)]).sqnr_min < 40


def test_bootstrap_draws_sequences_and_is_seeded() -> None:
    pairs = [(of, outputs(of, seed=n), outputs(of, seed=n, noise=0.1 + n)) for n in range(6) for of in [probe(f"{n}")]]
    found = compared(pairs)
    again, other = compared(pairs), compared(pairs, seed=1)
    assert (found.kl_low, found.kl_high) == (again.kl_low, again.kl_high)
    assert (found.kl_low, found.kl_high) != (other.kl_low, other.kl_high)
    # sequences differ much more than tokens of one: drawing tokens would give an interval a third as wide
    assert found.kl_high - found.kl_low > 0.5 * found.kl_mean
    alone = compared([(one := probe(rows=1), outputs(one), outputs(one, noise=0.1))])
    assert str(alone.kl_low) == str(alone.kl_high) == "nan"
    assert any(finding.code.endswith("kl_mean") for finding in gates.judge(alone.values, profiles.load("w4a16"), None))


def test_sqnr_is_of_tokens_and_not_of_energy() -> None:
    sums = StateSums()
    states = drawn(100, 64)
    states[0] *= 1e4
    sums.add(states, states * 1.01)
    assert sums.metrics("x").sqnr == pytest.approx(40, abs=1e-3)
    changed = states.clone()
    changed[1:] *= 1.1  # the large token is right
    sums = StateSums()
    sums.add(states, changed)
    assert sums.metrics("x").sqnr == pytest.approx(20, abs=0.1)


def test_equal_states_count_without_arithmetic() -> None:
    states = drawn(6, 8)
    equal, summed = StateSums(), StateSums()
    equal.add(states, states.clone())
    summed.add(states, states.double())
    assert equal.metrics("x") == summed.metrics("x") == StateMetrics("x", float("inf"), 1.0)
    assert equal.tokens == summed.tokens == 6


def test_states_of_other_shapes_have_nothing_in_common() -> None:
    sums = StateSums()
    sums.add(drawn(6, 8), drawn(7, 8))
    assert sums.metrics("x").sqnr == -float("inf")
    one = probe()
    candidate = outputs(one)
    fewer = replace(candidate, embedders={"embed_vision": drawn(5, 96)})
    assert compared([(one, outputs(one), fewer)]).embedders[0].sqnr == -float("inf")


def test_the_cosine_of_rows_is_that_of_torch() -> None:
    a = drawn(5, 30).double()
    assert torch.allclose(cosine(a, -2 * a), torch.tensor(-1.0).double())
    assert torch.allclose(cosine(a, drawn(5, 30, seed=2).double()), torch.cosine_similarity(a, drawn(5, 30, seed=2)))


def test_routers_are_compared_by_the_experts_that_both_choose() -> None:
    sums = RouterSums(6)
    sums.add(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 5]]))
    found = sums.metrics("layers.0")
    assert found.jaccard == pytest.approx((1 + 1 / 3) / 2)
    assert found.hits == (1, 1, 1, 1, 0, 0)
    one = probe()
    assert compared([(one, outputs(one), outputs(one, noise=0.5))]).router_jaccard_min < 1
    few = compared([(one, outputs(one), outputs(one))])
    assert few.experts_unhit == few.routers[0].hits.count(0)


def test_projection_keeps_lengths_and_equality() -> None:
    projection = Projection()
    states, noise = drawn(400, 512, scale=1), drawn(400, 512, seed=1, scale=0.01)
    exact, estimated = StateSums(), StateSums()
    exact.add(states, states + noise)
    estimated.add(projection(states), Projection()(states + noise))
    assert estimated.metrics("").sqnr == pytest.approx(exact.metrics("").sqnr, abs=0.5)
    assert torch.equal(projection(states), Projection()(states.clone()))
    assert torch.equal(projection(states[:, :64]), states[:, :64])
    one = probe()
    comparison = Comparison(projection=projection)
    comparison.add(one, KeptProbe.of(one, outputs(one), projection=projection), outputs(one))
    assert comparison.metrics().sqnr_min == float("inf")


def test_logits_are_made_piece_by_piece_and_once_for_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Last states of the models differ; scores in pieces of 3 rows are those of whole logits."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, VOCABULARY, bias=False)
    head = Head(linear, linear.weight.detach(), 30.0, torch.device("cpu"))
    states = {name: [drawn(5, 16, seed=n), drawn(4, 16, seed=n + 9)] for n, name in enumerate("abc")}
    targets = [torch.arange(5), torch.arange(4)]
    named = {name: [HeadLogits(head, part) for part in parts] for name, parts in states.items()}
    monkeypatch.setattr("g4convert.forward.logits.PIECE", 3 * VOCABULARY)
    monkeypatch.setattr("g4convert.forward.logits._BLOCK", 7 * 16)
    done: list[int] = []
    found = score_pairs(named, [("a", "b"), ("b", "c")], targets, tell=done.append)
    assert done == [3, 3, 3]  # rows of both probes, together
    for (one, other), parts in found.items():
        for a, b, true, one_by_one in zip(states[one], states[other], targets, parts, strict=True):
            raw = linear(a).detach(), linear(b).detach()
            expected = score(30 * (raw[0] / 30).tanh(), 30 * (raw[1] / 30).tanh(), true, raw=raw)
            assert torch.allclose(one_by_one.kl, expected.kl, rtol=1e-4)
            assert torch.allclose(one_by_one.cosine, expected.cosine, rtol=0, atol=1e-6)  # of 1; some are near 0
            assert torch.equal(one_by_one.agrees, expected.agrees)


def test_buffers_of_a_page_are_used_again() -> None:
    page = Page()
    first = page.buffer(0, 4, VOCABULARY)
    assert page.buffer(0, 3, VOCABULARY).data_ptr() == first.data_ptr()
    assert page.buffer(1, 3, VOCABULARY).data_ptr() != first.data_ptr()


def test_every_metric_of_a_profile_is_measured() -> None:
    one = probe()
    found = compared([(one, outputs(one), outputs(one, noise=0.1))])
    assert set(get_args(profiles.MetricName)) <= set(found.values)
    assert set(asdict(found)) >= set(found.values)


@dataclass(frozen=True)
class Bare:
    """A model that shows logits only, as an engine does."""

    rows: HeldLogits
    layers: dict[str, torch.Tensor] = field(default_factory=dict)
    embedders: dict[str, torch.Tensor] = field(default_factory=dict)
    routers: dict[str, torch.Tensor] = field(default_factory=dict)


def test_a_candidate_may_show_logits_only() -> None:
    one = probe()
    found = compared([(one, outputs(one), Bare(HeldLogits(outputs(one).logits)))])
    assert found.kl_max == found.logit_max_diff == 0
    assert str(found.sqnr_min) == str(found.router_jaccard_min) == "nan"
    assert found.layers == ()
