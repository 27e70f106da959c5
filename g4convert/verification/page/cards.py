"""Cards of the page: one for each table and plot of the numbers, as values that the template draws.

Cards whose numbers were not measured are left out. The cards read these keys of `metrics`:

    loss, parity        as `Metrics`                      floor       as `Floor.to_dict()`
    profiles            thresholds by comparison           blame       tables by comparison, `Blame`
    kl_histogram_edges  of the bins                        weights     {"tensors": [{"name", "relative_error", ...}]}
    engine              {"buckets": [{"name", "mean", ...}]}
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from g4convert.names import Name
from g4convert.verification.labels import COMPARED, COSTLY, LOWER_BOUND, METRICS, SWAPPED, TITLES, group_by_kind
from g4convert.verification.page.plots import bars, heat, histogram, lines, number

Json = Mapping[str, Any]

_COLOURS: Final = {"loss": "a", "parity": "b", "noise floor": "floor"}
_ERRORS: Final = {
    "relative_error": "relative error",
    "zero": "zero codes",
    "saturated": "saturated",
    "exact": "exact groups",
}
_MAX_WEIGHTS: Final = 20


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Args:
        text: text of the cell; empty if `severity` is shown as a tag.
        note: small text below.
        is_path: whether the text is a dotted path, set as code.
        share: share from 0 to 1, drawn as a bar below; None without a bar.
        severity: severity whose tag is shown; empty for none.
    """

    text: str = ""
    note: str = ""
    is_path: bool = False
    share: float | None = None
    severity: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: names of columns, each with whether the column has numbers, and rows of cells."""

    head: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Key:
    """Entry of a plot's legend: a colour and its meaning."""

    colour: str
    words: str
    line: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """One box of the page.

    Args:
        title: heading of the card.
        how: text on how to read the card.
        table: the card's table; None if it has none.
        plot: the card's plot as SVG; None if it has none.
        legend: legend of the plot.
        missing: text in place of a missing plot.
        note: small text below the plot.
        wide: whether the card spans both columns of the page.
        strip: whether the plot scrolls sideways on a narrow screen.
    """

    title: str
    how: str
    table: Table | None = None
    plot: Markup | None = None
    legend: Sequence[Key] = ()
    missing: str = ""
    note: str = ""
    wide: bool = False
    strip: bool = False


def number_of(value: float | str | None) -> float:
    """Return a number of a report's JSON as float: texts stand for infinity and nan, None for nan."""
    return math.nan if value is None else float(value)


def cards(report: Json) -> Iterator[Card]:
    """Yield every card whose numbers were measured."""
    metrics, findings = report["metrics"], report["findings"]
    kinds = [kind for kind in ("loss", "parity") if kind in metrics]
    yield from (_summary_card(kind, metrics, findings) for kind in kinds)
    yield from (_blame_card(kind, table) for kind, table in metrics.get("blame", {}).items())
    yield from (_kl_card(kind, metrics) for kind in kinds)
    if kinds:
        yield _sqnr_card(metrics, kinds)
        yield _confidence_card(metrics, kinds)
        yield from _experts_card(metrics[kinds[-1]])
        yield _buckets_card(metrics, kinds)
    if "engine" in metrics:
        yield _engine_card(metrics["engine"]["buckets"])
    if tensors := metrics.get("weights", {}).get("tensors"):
        yield _weights_card(tensors)


def _summary_card(kind: str, metrics: Json, findings: Sequence[Json]) -> Card:
    """Return the card of all metrics, each with its floor, limits and verdict."""
    judged = {Name(one["code"]).last: one for one in findings if one["code"].startswith(f"logits.{kind}.")}
    floor = metrics.get("floor", {}).get("values", {})
    rows = []
    for name, words in METRICS.items():
        value = number_of(metrics[kind].get(name))
        if math.isnan(value):
            continue
        finding = judged.get(name)
        verdict = (
            (Cell(finding["expected"]), Cell(severity=finding["severity"])) if finding is not None else (Cell(), Cell())
        )
        interval = _interval(metrics[kind]) if name == "kl_mean" else ""
        rows.append((Cell(words, interval), _cell(value), _cell(floor.get(name)), *verdict))
    bound = f" {LOWER_BOUND}."
    how = _capitalize(f"{COMPARED[kind]}.") + (bound if metrics[kind]["lower_bound"] else "")
    head = (("Metric", False), ("Value", True), ("Floor", True), ("Limit", False), ("", False))
    return Card(_capitalize(TITLES[kind]), how, Table(head, rows))


def _capitalize(words: str) -> str:
    """Return words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]


def _interval(metrics: Json) -> str:
    if math.isnan(number_of(metrics["kl_low"])):
        return ""
    return f"95 %: {_number(metrics['kl_low'])} to {_number(metrics['kl_high'])}"


def _number(value: float | str | None) -> str:
    return number(value, digits=3)


def _cell(value: float | str | None) -> Cell:
    return Cell(_number(value))


def _blame_card(kind: str, table: Json) -> Card:
    """Return the card of the table of blame: modules with their shares of the KL."""
    rows = []
    for heading, alike in group_by_kind(table["rows"]):
        for place, row in enumerate(alike):
            share = number_of(row["share"])
            removed = Cell(f"{100 * share:.0f} %", share=share)
            module = Cell(row["module"], row["note"], is_path=True)
            rows.append((Cell(heading * (place == 0)), module, removed, _cell(row["kl"]), _cell(row["sqnr"])))
    control = table["control"]
    again = "" if control == table["kl"] else f" (when run again {number(control)})"
    over = f" over {table['predictions']} predictions of {' and '.join(table['probes'])}" if table.get("probes") else ""
    how = (
        f"The mean KL is {number(table['kl'])} nats{over}{again}. Each row gives one module {SWAPPED[kind]}: the "
        "share of that KL that this removes, the KL left, and the SQNR of the module's outputs on equal inputs. "
        "Shares need not add up to 100 %; a layer's holds those of its parts."
    )
    head = (("", False), ("Module", False), ("Removes", True), ("KL left", True), ("SQNR, dB", True))
    return Card(_capitalize(COSTLY[kind]), how, Table(head, rows), wide=True)


def _kl_card(kind: str, metrics: Json) -> Card:
    edges, floor = metrics["kl_histogram_edges"], metrics.get("floor", {}).get("kl_histogram", [])
    colour = _COLOURS[kind]
    plot = histogram(edges, metrics[kind]["kl_histogram"], floor, label=kind, colour=colour)
    keys = (Key(colour, f"{kind}: {number(metrics[kind]['tokens'])} tokens"), Key("floor", "noise floor", line=True))
    how = "Share of predictions by their KL divergence. Left of, or on, the floor is as good as rounding allows."
    return _plot_card(
        f"{_capitalize(kind)}: KL of each token beside the noise floor", how, plot, keys, missing="No tokens."
    )


def _sqnr_card(metrics: Json, kinds: Sequence[str]) -> Card:
    series = {kind: [number_of(layer["sqnr"]) for layer in metrics[kind]["layers"]] for kind in kinds}
    if floor := metrics.get("floor", {}).get("layers"):
        series["noise floor"] = [number_of(layer["sqnr"]) for layer in floor]
    names = [Name(layer["name"]).last for layer in metrics[kinds[0]]["layers"]]
    plot = lines(series, names, colours=_COLOURS, unit="dB") if names else ""
    keys = [Key(_COLOURS[kind], kind, line=True) for kind in series]
    equal = [kind for kind, values in series.items() if values and all(math.isinf(value) for value in values)]
    note = f"Equal in every layer: {', '.join(equal)}." if equal else ""
    how = "Signal to noise of the residual stream after each layer, in dB; higher is better, a step down names a layer."
    return _plot_card("SQNR by layer", how, plot, keys, missing="Not seen in this candidate.", note=note)


def _plot_card(title: str, how: str, plot: str, keys: Sequence[Key], *, missing: str = "", note: str = "") -> Card:  # noqa: PLR0913 -- parts of a card
    drawn = Markup(plot)  # noqa: S704 -- plots escape what they are given
    return Card(title, how, plot=drawn or None, legend=keys, missing="" if plot else missing, note=note)


def _confidence_card(metrics: Json, kinds: Sequence[str]) -> Card:
    bins = metrics[kinds[0]]["by_confidence"]
    groups = [f"{number(100 * band['low'])} to {number(100 * band['high'])} %" for band in bins]
    series = {kind: [number_of(band["agreement"]) for band in metrics[kind]["by_confidence"]] for kind in kinds}
    tokens = [band["tokens"] for band in bins]
    plot = bars(groups, series, tokens, colours=_COLOURS, axis="confidence of the reference")
    keys = [Key(_COLOURS[kind], kind) for kind in kinds]
    how = "How often both find the same token likeliest, by the reference's probability of it; below, tokens of each."
    return _plot_card("Agreement by confidence", how, plot, keys)


def _experts_card(metrics: Json) -> Iterator[Card]:
    routers = metrics["routers"]
    if routers:
        rows = {Name(router["name"]).last: router["hits"] for router in routers}
        total = sum(len(hits) for hits in rows.values())
        how = (
            f"Tokens that the reference sent to each expert, layer by layer: {total - metrics['experts_unhit']} of "
            f"{total} experts were reached. Outlined ones were not, so the logits prove nothing about them."
        )
        plot = Markup(heat(rows, what="expert"))  # noqa: S704 -- plots escape what they are given
        yield Card("Expert coverage", how, plot=plot, wide=True, strip=True)


def _buckets_card(metrics: Json, kinds: Sequence[str]) -> Card:
    """Return the card of the main metrics by kind of probe."""
    names = [bucket["name"] for bucket in metrics[kinds[0]]["buckets"]]
    by_kind = {kind: {bucket["name"]: bucket for bucket in metrics[kind]["buckets"]} for kind in kinds}
    rows = []
    for name in names:
        row = [Cell(name.replace("_", " ")), Cell(number(by_kind[kinds[0]][name]["tokens"]))]
        for kind in kinds:
            bucket = by_kind[kind][name]
            row += [_cell(bucket[key]) for key in ("kl_mean", "kl_p99", "top1_agreement", "ppl_ratio")]
        rows.append(row)
    head = [("Probes", False), ("Tokens", True)]
    for kind in kinds:
        head += [(f"{kind}: mean KL", True), ("99 %", True), ("same top", True), ("PPL ratio", True)]
    return Card("By kind of probe", _name_worst(metrics[kinds[0]]["buckets"]), Table(head, rows), wide=True)


def _name_worst(buckets: Sequence[Json]) -> str:
    """Name the kinds of probes with the largest and the smallest mean KL; empty if there is nothing to compare."""
    losses = {bucket["name"].replace("_", " "): number_of(bucket["kl_mean"]) for bucket in buckets}
    known = {name: loss for name, loss in losses.items() if not math.isnan(loss)}
    worst, best = max(known, key=known.__getitem__, default=""), min(known, key=known.__getitem__, default="")
    if worst == best or known[worst] == known[best]:
        return ""
    return (
        f"The mean KL is largest in {worst} ({_number(known[worst])}) and smallest in {best} ({_number(known[best])})."
    )


def _engine_card(buckets: Sequence[Json]) -> Card:
    """Return the card of a real engine's differences by kind of probe."""
    rows = [
        [
            Cell(bucket["name"].replace("_", " ")),
            *(_cell(bucket[key]) for key in ("tokens", "mean", "floor_mean", "largest", "kl_mean")),
            Cell(f"{_number(100 * number_of(bucket['top1_agreement']))} %"),
        ]
        for bucket in buckets
    ]
    head = [("Probes", False), ("Tokens", True), ("Mean difference", True), ("Floor", True), ("Largest", True)]
    head += [("Mean KL", True), ("Same top token", True)]
    how = "Log-probabilities of the engine against those of the dequantized weights; the floor is rounding alone."
    return Card("What the engine answers", how, Table(head, rows), wide=True)


def _weights_card(tensors: Sequence[Json]) -> Card:
    """Return the card of the packed weights with the largest errors."""
    worst = sorted(tensors, key=lambda tensor: -number_of(tensor["relative_error"]))[:_MAX_WEIGHTS]
    measured = [key for key in _ERRORS if any(key in tensor for tensor in worst)]
    rows = [
        [
            Cell(tensor["name"], is_path=True),
            *(Cell(f"{_number(100 * number_of(tensor.get(key)))} %") for key in measured),
        ]
        for tensor in worst
    ]
    head = [("Weight", False), *((_ERRORS[key], True) for key in measured)]
    how = (
        f"The {len(worst)} of {len(tensors)} packed weights with the largest squared error, relative to their own size."
    )
    return Card("Worst weights", how, Table(head, rows), wide=True)
