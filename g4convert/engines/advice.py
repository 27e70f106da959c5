"""Advice on engines that refuse a checkpoint: changes that would make them load it, and the gate that names these.

Each change is tried on the engines' rules before it is offered, which takes several times as long as the verdicts. So
`verdicts` gives no advice, and callers that show advice call `with_remedies`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from g4convert.engines import CONTRACTS
from g4convert.engines.forms import wrong_forms
from g4convert.engines.remarks import Remark, Remedy, Topic, joined
from g4convert.engines.remedies import Change, gpus_of, remedies
from g4convert.engines.verdicts import SPLITTING, TENSOR_PARALLEL, Loads, Verdict, select_verdicts, verdicts_of_engine
from g4convert.engines.weights import Weights
from g4convert.errors import GateError


def with_remedies(weights: Weights, found: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return verdicts with the changes that would make the engine load the checkpoint on as many GPUs."""
    given = tuple(found)
    names = {one.engine: one.name for one in given}
    tried = _Tried(weights, weights.thinned(), names)
    return tuple(_advised(tried, one) for one in given)


def raise_if_refused(
    weights: Weights, found: Iterable[Verdict], engines: Collection[str], tps: Collection[int]
) -> None:
    """Raise an error if a required engine cannot load a checkpoint.

    Args:
        weights: the checkpoint.
        found: verdicts on the checkpoint, which must cover these engines and sizes.
        engines: engines that must load it, keys of `CONTRACTS`.
        tps: tensor parallel sizes at which they must load it.

    Raises:
        GateError: an engine cannot load it; gives every reason, and changes with which all engines load at all sizes.
    """
    refused = [one for one in select_verdicts(found, engines, tps) if one.loads is Loads.NO]
    if refused:
        problems = [remark for one in refused for remark in one.problems]
        lines = [f"{one.label}, TP {one.tp}: {remark.line}" for one in refused for remark in one.problems]
        lifted = any(remark.may_be_lifted for remark in problems)
        starting = [one for one in engines if not any(CONTRACTS[one].needs(weights.architecture))]
        among = _ways(_Tried(weights, weights.thinned()), starting, tps, problems) if lifted else ()
        told = (one if one.tp is None else replace(one, text=f"`--tp {one.tp}` ({one.text})") for one in among)
        ways = [joined(told)] if lifted else []
        ways += dict.fromkeys(remark.remedy for remark in problems if remark.remedy and not remark.may_be_lifted)
        names = dict.fromkeys(one.label for one in refused)
        raise GateError(f"{' and '.join(names)} cannot load it", offenders=lines, hint="; ".join(ways))


@dataclass(frozen=True, slots=True)
class _Tried:
    """Cache of trials: each change is judged once, for all numbers of GPUs.

    Args:
        weights: the checkpoint.
        thin: the checkpoint with one expert per layer.
        names: engines to name with each change, by key of `CONTRACTS`.
        found: (engines, sizes, change) -> result of `loaded`.
    """

    weights: Weights
    thin: Weights
    names: Mapping[str, str] = field(default_factory=dict)
    found: dict[tuple[object, ...], Mapping[int, bool]] = field(default_factory=dict)

    def loaded(self, engines: tuple[str, ...], tps: tuple[int, ...], change: Change) -> Mapping[int, bool]:
        """Return the sizes at which all engines load the changed weights, each with True if an engine needs a flag."""
        key = engines, tps, change
        if key not in self.found:
            self.found[key] = _loaded(replace(change.of(self.thin), groups={}), engines, tps)
        return self.found[key]

    def everywhere(self, change: Change) -> tuple[str, ...]:
        """Return the names of the engines that load the changed weights, with their numbers of GPUs."""
        found = {name: (one, self.loaded((one,), TENSOR_PARALLEL, change)) for one, name in self.names.items()}
        return tuple(
            f"{name} ({gpus_of(fits)})" if one in SPLITTING else name for name, (one, fits) in found.items() if fits
        )


def _advised(tried: _Tried, verdict: Verdict) -> Verdict:
    if not any(one.may_be_lifted for one in verdict.problems):
        return verdict
    ways = _ways(tried, [verdict.engine], [verdict.tp], verdict.problems)
    told = (replace(one, ways=ways) if one.may_be_lifted else one for one in verdict.problems)
    return replace(verdict, problems=tuple(told), remedies=ways)


def _ways(
    tried: _Tried, engines: Collection[str], tps: Collection[int], problems: Iterable[Remark]
) -> tuple[Remedy, ...]:
    """Return the ways that make all engines load the checkpoint at all sizes."""
    scope = tuple(sorted({*TENSOR_PARALLEL, *tps}))
    splits = not SPLITTING.isdisjoint(engines)
    lifted = [one for one in problems if one.may_be_lifted]
    return remedies(
        tried.weights, tps if splits else (), lifted, partial(tried.loaded, tuple(engines), scope), tried.everywhere
    )


def _loaded(weights: Weights, engines: Iterable[str], tps: Iterable[int]) -> dict[int, bool]:
    """Return the sizes at which all engines load weights, if the config fits, each with True if one needs a flag."""
    fits = dict.fromkeys(tps, False)
    for engine in engines:
        refused = tuple(one for one in wrong_forms(weights, CONTRACTS[engine]) if one.topic is Topic.REFUSED)
        for one in verdicts_of_engine(weights, CONTRACTS[engine], tuple(fits), refused):
            if one.loads is Loads.NO:
                fits = {tp: flag for tp, flag in fits.items() if tp != one.tp and engine in SPLITTING}
            elif any(remark.topic is Topic.FLAG for remark in one.caveats):
                fits[one.tp] = True
    return fits
