"""Verdicts of engines on plans of released variants."""

import json
from collections.abc import Iterable
from functools import cache

from g4convert.engines.advice import with_remedies
from g4convert.engines.verdicts import TENSOR_PARALLEL, Loads, Verdict, verdicts
from g4convert.engines.weights import Weights
from g4convert.planning.weights import make_planned_weights
from helpers.headers import planned
from helpers.released_configs import released, small

MOE = "26B-A4B"
YES, CAVEAT, NO = Loads.YES, Loads.CAVEAT, Loads.NO
DENSE_PARTS = {"pack": ["attention", "mlp"]}
EXPERTS = {"pack": ["experts"]}


@cache
def planned_once(size: str, options: str) -> Weights:
    return make_planned_weights(planned(released(size), **json.loads(options)))


@cache
def thin_once(size: str, options: str) -> Weights:
    config = small(size)
    if config["text_config"].get("num_experts"):
        config["text_config"] |= {"num_experts": 8, "top_k_experts": 2}
    return make_planned_weights(planned(config, **json.loads(options)))


def thin(size: str, options: dict[str, object]) -> Weights:
    """A model of few layers and experts, of every width: its size on disk is not the released one's."""
    return thin_once(size, json.dumps(options, sort_keys=True))


def weights_of(size: str, options: dict[str, object]) -> Weights:
    return planned_once(size, json.dumps(options, sort_keys=True))


def verdict(weights: Weights, engine: str, tp: int) -> Verdict:
    (found,) = verdicts(weights, [engine], [tp])
    return found


def verdicts_with_remedies(
    weights: Weights, engines: list[str], tps: Iterable[int] = TENSOR_PARALLEL
) -> tuple[Verdict, ...]:
    return with_remedies(weights, verdicts(weights, engines, tps))
