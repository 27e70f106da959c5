"""One self-contained page for `--html`: what was found, with plots; no script, no request, light and dark.

It is made from a report as JSON (`Report.to_dict()`), so a stored one can be shown, too. Sections whose numbers were
not measured are left out. Of `metrics` it reads:

    loss, parity        as `Metrics.to_dict()`            floor       as `Floor.to_dict()`
    profiles            thresholds by comparison           blame       tables by comparison, `Blame.to_dict()`
    kl_histogram_edges  of the bins                        weights     {"tensors": [{"name", "relative_error", ...}]}
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from g4convert.report import Severity
from g4convert.verification.page.plots import bars, heat, histogram, lines, number, share_bar
from g4convert.verification.page.style import CSS

__all__ = ["page"]

Json = Mapping[str, Any]

_WORDS: Final = {
    "pass": ("✓", "Pass"),
    "warn": ("!", "Pass, with warnings"),
    "inconclusive": ("?", "Inconclusive"),
    "fail": ("✗", "Fail"),
}
_TAGS: Final = {"pass": "pass", "warn": "warn", "fail": "fail", "inconclusive": "unclear", "info": "info"}
_METRICS: Final = {
    "kl_mean": "mean KL",
    "kl_median": "median KL",
    "kl_p99": "99 % KL",
    "kl_p999": "99.9 % KL",
    "kl_max": "largest KL",
    "top1_agreement": "same likeliest token",
    "top1_confident": "the same, where confident",
    "rms_dp": "RMS Δp of the true token",
    "ppl_ratio": "perplexity ratio",
    "logit_cosine": "cosine of logits",
    "logit_max_diff": "largest logit difference",
    "sqnr_min": "lowest SQNR of a layer, dB",
    "router_jaccard_min": "lowest router overlap",
}
_TITLES: Final = {"loss": "What four bits cost", "parity": "Whether it runs as written"}
_ASKS: Final = {
    "loss": "The original against the dequantized weights.",
    "parity": "The dequantized weights against the path that runs them packed.",
}
_COLOURS: Final = {"loss": "a", "parity": "b", "noise floor": "floor"}
_ORDER: Final = ("fail", "inconclusive", "warn", "info", "pass")
_TENSORS: Final = 20


def page(report: Json) -> str:
    """The page.

    Args:
        report: `Report.to_dict()`.
    """
    title = f"{_name(report['output'])}: {_TAGS[report['verdict']]}"
    body = "".join([_head(report), *_cards(report), _findings(report["findings"])])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or "checkpoint"


def _head(report: Json) -> str:
    verdict, counts, metrics = report["verdict"], report["counts"], report["metrics"]
    sign, word = _WORDS[verdict]
    tallies = [f"{counts[kind]} {words}" for kind, words in _tally_words() if counts[kind]]
    why = f"<p>{escape(', '.join(tallies))}</p>{_blamed(metrics, report['findings'])}"
    facts = {
        "Checkpoint": report["output"],
        "Reference": report["reference"] or "none",
        "Levels": ", ".join(report["levels"]),
    }
    some = metrics.get("loss") or metrics.get("parity")
    if some:
        facts["Tokens"] = f"{number(some['tokens'])} in {number(some['sequences'])} sequences"
        facts["Forward in"] = metrics["dtype"]
        facts["Metrics"] = f"version {metrics['metrics_version']}"
        facts["Probes"] = f"{metrics['probes']['count']}, {metrics['probes']['digest'][:12]}"
    facts["g4convert"] = report["g4convert"]
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return (
        f'<header><p class="eyebrow">g4convert verify</p><h1>{escape(_name(report["output"]))}</h1>'
        f'<div class="verdict {verdict}"><div class="word">{sign} {word}</div><div class="why">{why}</div></div>'
        f'<dl class="facts">{listed}</dl></header>'
    )


def _tally_words() -> Iterable[tuple[str, str]]:
    return (("fail", "failed"), ("inconclusive", "unclear"), ("warn", "warned"), ("pass", "passed"))


def _blamed(metrics: Json, findings: Sequence[Json]) -> str:
    """Who is to blame, in a line for each comparison that failed; without one the first failure."""
    words = []
    for kind in ("parity", "loss"):
        rows = metrics.get("blame", {}).get(kind, {}).get("rows", [])
        if rows and any(one["severity"] == "fail" and _is_about(one, kind) for one in findings):
            words.append(
                f"{kind}: <b>{escape(rows[0]['module'])}</b>, {100 * _float(rows[0]['share']):.0f} % of the KL"
            )
    failed = next((one for one in findings if one["severity"] == "fail"), None)
    if not words and failed is not None:
        words.append(f"<b>{escape(failed['subject'])}</b>: {escape(failed['found'])}")
    return "".join(f"<p>{line}</p>" for line in words)


def _is_about(finding: Json, kind: str) -> bool:
    return finding["code"].startswith(f"logits.{kind}.") or (kind == "parity" and finding["code"] == "logits.modules")


def _cards(report: Json) -> Iterator[str]:
    metrics, findings = report["metrics"], report["findings"]
    kinds = [kind for kind in ("loss", "parity") if kind in metrics]
    if kinds or "weights" in metrics:
        yield '<div class="grid">'
        for kind in kinds:
            yield _summary(kind, metrics, findings)
        for kind, table in metrics.get("blame", {}).items():
            yield _blame(kind, table)
        for kind in kinds:
            yield _kl(kind, metrics)
        if kinds:
            yield _sqnr(metrics, kinds)
            yield _confidence(metrics, kinds)
            yield from _experts(metrics, kinds)
            yield _buckets(metrics, kinds)
        if tensors := metrics.get("weights", {}).get("tensors"):
            yield _tensors(tensors)
        yield "</div>"


def _card(title: str, how: str, body: str, *, wide: bool = False) -> str:
    return (
        f'<section class="card{" wide" if wide else ""}"><h2>{escape(title)}</h2><p class="how">{escape(how)}</p>'
        f"{body}</section>"
    )


def _table(head: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are markup; `True` marks a column of numbers."""
    heads = "".join(
        f'<th class="n">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>" for name, right in head
    )
    lines_ = "".join(
        "<tr>"
        + "".join(f'<td class="{"n" if head[place][1] else "name"}">{cell}</td>' for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll {kind}"><table><thead><tr>{heads}</tr></thead><tbody>{lines_}</tbody></table></div>'


def _tag(severity: str) -> str:
    return f'<span class="tag {severity}">{_TAGS[severity]}</span>'


def _summary(kind: str, metrics: Json, findings: Sequence[Json]) -> str:
    """Every metric with its floor, its limits and what they say of it."""
    judged = {one["code"].rpartition(".")[2]: one for one in findings if one["code"].startswith(f"logits.{kind}.")}
    floor = metrics.get("floor", {}).get("values", {})
    rows = []
    for name, words in _METRICS.items():
        value = _float(metrics[kind].get(name))
        if math.isnan(value):
            continue
        finding = judged.get(name)
        limits, tag = (escape(finding["expected"]), _tag(finding["severity"])) if finding else ("", "")
        interval = _interval(metrics[kind]) if name == "kl_mean" else ""
        rows.append((f"{words}{interval}", _number(value), _number(floor.get(name)), limits, tag))
    how = _ASKS[kind] + (
        " KL is a lower bound: only the likeliest tokens of the reference are known."
        if metrics[kind]["lower_bound"]
        else ""
    )
    head = (("Metric", False), ("Value", True), ("Floor", True), ("Limit", False), ("", False))
    return _card(_TITLES[kind], how, _table(head, rows))


def _interval(metrics: Json) -> str:
    if math.isnan(_float(metrics["kl_low"])):
        return ""
    return _note(f"95 %: {_number(metrics['kl_low'])} to {_number(metrics['kl_high'])}")


def _number(value: float | str | None) -> str:
    return number(value, digits=3)


def _blame(kind: str, table: Json) -> str:
    """Who causes how much."""
    rows = [
        (
            f"<code>{_path(row['module'])}</code>{_note(row['note'])}",
            f"{100 * _float(row['share']):.0f} %{share_bar(_float(row['share']))}",
            _number(row["kl"]),
            _number(row["sqnr"]),
        )
        for row in table["rows"]
    ]
    same = "the same again" if table["control"] == table["kl"] else f"{number(table['control'])} when run again"
    how = (
        f"Mean KL {number(table['kl'])} with nothing swapped ({same}). Each row swaps one module for the one it should "
        "equal: how much of the KL goes, what is left, and the SQNR of its outputs on equal inputs."
    )
    head = (("Module", False), ("KL explained", True), ("KL left", True), ("SQNR, dB", True))
    return _card(f"Who is to blame: {kind}", how, _table(head, rows), wide=True)


def _note(words: str) -> str:
    return f'<div class="small">{escape(words)}</div>' if words else ""


def _kl(kind: str, metrics: Json) -> str:
    edges, floor = metrics["kl_histogram_edges"], metrics.get("floor", {}).get("kl_histogram", [])
    colour = _COLOURS[kind]
    plot = histogram(edges, metrics[kind]["kl_histogram"], floor, label=kind, colour=colour)
    keys = [(colour, f"{kind}: {number(metrics[kind]['tokens'])} tokens", ""), ("floor", "noise floor", "line-key")]
    how = "Share of response tokens by their KL divergence. Left of, or on, the floor is as good as rounding allows."
    return _card(f"KL of {kind} against the floor", how, _legend(keys) + (plot or "<p>No tokens.</p>"))


def _legend(keys: Iterable[tuple[str, str, str]]) -> str:
    return (
        '<div class="legend">'
        + "".join(f'<span class="key-{key} {kind}">{escape(words)}</span>' for key, words, kind in keys)
        + "</div>"
    )


def _sqnr(metrics: Json, kinds: Sequence[str]) -> str:
    series = {kind: [_float(layer["sqnr"]) for layer in metrics[kind]["layers"]] for kind in kinds}
    if floor := metrics.get("floor", {}).get("layers"):
        series["noise floor"] = [_float(layer["sqnr"]) for layer in floor]
    names = [layer["name"].rpartition(".")[2] for layer in metrics[kinds[0]]["layers"]]
    plot = lines(series, names, colours=_COLOURS, unit="dB") if names else ""
    keys = [(_COLOURS[kind], kind, "line-key") for kind in series]
    equal = [kind for kind, values in series.items() if values and all(math.isinf(value) for value in values)]
    note = f'<p class="small">Equal in every layer: {escape(", ".join(equal))}.</p>' if equal else ""
    how = "Signal to noise of the residual stream after each layer, in dB; higher is better, a step down names a layer."
    return _card("SQNR by layer", how, _legend(keys) + (plot or "<p>Not seen in this candidate.</p>") + note)


def _confidence(metrics: Json, kinds: Sequence[str]) -> str:
    bins = metrics[kinds[0]]["by_confidence"]
    groups = [f"{number(100 * one['low'])} to {number(100 * one['high'])} %" for one in bins]
    series = {kind: [_float(one["agreement"]) for one in metrics[kind]["by_confidence"]] for kind in kinds}
    tokens = [one["tokens"] for one in bins]
    plot = bars(groups, series, tokens, colours=_COLOURS, axis="confidence of the reference")
    keys = [(_COLOURS[kind], kind, "") for kind in kinds]
    how = "How often both find the same token likeliest, by the reference's probability of it; below, tokens of each."
    return _card("Agreement by confidence", how, _legend(keys) + plot)


def _experts(metrics: Json, kinds: Sequence[str]) -> Iterator[str]:
    routers = metrics[kinds[-1]]["routers"]
    if routers:
        rows = {router["name"].rpartition(".")[2]: router["hits"] for router in routers}
        total = sum(len(hits) for hits in rows.values())
        missed = metrics[kinds[-1]]["experts_unhit"]
        how = (
            f"Tokens that the reference sent to each expert, layer by layer: {total - missed} of {total} experts were "
            "reached. Outlined ones were not, so the logits prove nothing about them."
        )
        yield _card("Expert coverage", how, f'<div class="scroll strip">{heat(rows, what="expert")}</div>', wide=True)


def _buckets(metrics: Json, kinds: Sequence[str]) -> str:
    """The main numbers by kind of probe."""
    names = [bucket["name"] for bucket in metrics[kinds[0]]["buckets"]]
    by_kind = {kind: {bucket["name"]: bucket for bucket in metrics[kind]["buckets"]} for kind in kinds}
    rows = []
    for name in names:
        cells = [escape(name.replace("_", " ")), number(by_kind[kinds[0]][name]["tokens"])]
        for kind in kinds:
            bucket = by_kind[kind][name]
            cells += [_number(bucket[key]) for key in ("kl_mean", "kl_p99", "top1_agreement", "ppl_ratio")]
        rows.append(cells)
    head = [("Probes", False), ("Tokens", True)]
    for kind in kinds:
        head += [(f"{kind}: mean KL", True), ("99 %", True), ("same top", True), ("PPL ratio", True)]
    return _card("By kind of probe", "Long and non-Latin text degrade first.", _table(head, rows), wide=True)


def _tensors(tensors: Sequence[Json]) -> str:
    """The packed weights with the largest errors."""
    worst = sorted(tensors, key=lambda one: -_float(one["relative_error"]))[:_TENSORS]
    columns = {
        "relative_error": "relative error",
        "zero": "zero codes",
        "saturated": "saturated",
        "exact": "exact groups",
    }
    used = [key for key in columns if any(key in one for one in worst)]
    rows = [
        [f"<code>{_path(one['name'])}</code>", *(f"{_number(100 * _float(one.get(key)))} %" for key in used)]
        for one in worst
    ]
    head = [("Weight", False), *((columns[key], True) for key in used)]
    how = (
        f"The {len(worst)} of {len(tensors)} packed weights with the largest squared error, relative to their own size."
    )
    return _card("Worst weights", how, _table(head, rows), wide=True)


def _findings(findings: Sequence[Json]) -> str:
    """All of them; those that passed folded away."""
    groups = {kind: [one for one in findings if one["severity"] == kind] for kind in _ORDER}
    parts = []
    for kind, members in groups.items():
        listed = f'<ul class="findings">{"".join(_finding(one) for one in members)}</ul>'
        if members and kind in {Severity.PASS, Severity.INFO}:
            words = "passed" if kind == Severity.PASS else "to know"
            parts.append(f"<details><summary>{len(members)} {words}</summary>{listed}</details>")
        elif members:
            parts.append(listed)
    how = "Every check, the worst first; what a check proves is described in docs/reference/checks.md."
    return f'<div class="grid">{_card("Findings", how, "".join(parts), wide=True)}</div>'


def _finding(one: Json) -> str:
    expected = f'<div class="small">expected: {escape(one["expected"])}</div>' if one["expected"] else ""
    remedy = f'<div class="remedy">{escape(one["remedy"])}</div>' if one["remedy"] else ""
    head = f"{_tag(one['severity'])}<b>{_path(one['subject'])}</b><code>{_path(one['code'])}</code>"
    found = f'<div class="body">{escape(one["found"])}</div>'
    return f'<li><div class="head">{head}</div>{found}{expected}{remedy}</li>'


def _path(words: str) -> str:
    """A dotted path, which may break after its dots."""
    return escape(words).replace(".", ".<wbr>")


def _float(value: float | str | None) -> float:
    """A number of a report: JSON has texts for what is not finite."""
    return math.nan if value is None else float(value)
