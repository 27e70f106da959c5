"""Page of `--html`: one file without scripts or requests, in light and dark.

It is made from a report as JSON (`Report.to_dict()`), so a stored report can be shown, too. Names in a report come
from files and may be hostile: control and bidirectional characters are written as escapes, the template escapes
markup, and a content security policy forbids scripts and requests.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from g4convert.printable import printable_lines
from g4convert.report import Severity
from g4convert.verification.page.cards import cards, number_of
from g4convert.verification.page.plots import number, share_bar

Json = Mapping[str, Any]

_WORDS: Final = {
    "pass": ("✓", "Pass"),
    "warn": ("!", "Pass, with warnings"),
    "inconclusive": ("?", "Inconclusive"),
    "fail": ("✗", "Fail"),
}
_TAGS: Final = {"pass": "pass", "warn": "warn", "fail": "fail", "inconclusive": "unclear", "info": "info"}
_TALLIES: Final = {"fail": "failed", "inconclusive": "unclear", "warn": "warned", "pass": "passed"}
_ORDER: Final = ("fail", "inconclusive", "warn", "info", "pass")
_BACKTICKS: Final = re.compile("`([^`\n]+)`")
_FOLDED: Final = {Severity.PASS: "passed", Severity.INFO: "to know"}


def page(report: Json) -> str:
    """Return a report as an HTML page.

    Returns:
        The text of an HTML file.
    """
    escaped = _escape(report)
    sign, word = _WORDS[escaped["verdict"]]
    return _ENVIRONMENT.get_template("report.html").render(
        report=escaped,
        name=escaped["output"].rstrip("/").rpartition("/")[2] or "checkpoint",
        tags=_TAGS,
        sign=sign,
        word=word,
        tallies=[f"{escaped['counts'][kind]} {words}" for kind, words in _TALLIES.items() if escaped["counts"][kind]],
        blamed=[*_culprit_lines(escaped["metrics"], escaped["findings"])],
        remedy=next(
            (
                finding["remedy"]
                for finding in escaped["findings"]
                if finding["severity"] == "fail" and finding["remedy"]
            ),
            "",
        ),
        facts=_facts(escaped),
        cards=[*cards(escaped)],
        groups=[*_group_findings(escaped["findings"])],
    )


def _escape(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """Return a JSON value with the control characters of its texts and keys written as escapes."""
    match value:
        case str():
            return printable_lines(value)
        case Mapping():
            return {printable_lines(str(key)): _escape(item) for key, item in value.items()}
        case list():
            return [_escape(item) for item in value]
        case _:
            return value


def _path(words: str) -> Markup:
    """Return a dotted path as markup that allows a line break after each dot."""
    return escape(words).replace(".", Markup(".<wbr>"))


def _code(words: str) -> Markup:
    """Return text as markup, with what stands between backticks as code."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(words))))  # noqa: S704 -- escaped before


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("g4convert.verification.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"path": _path, "code": _code, "share_bar": lambda share: Markup(share_bar(share))}  # noqa: S704 -- a number
    return environment


_ENVIRONMENT: Final = _make_environment()


def _facts(report: Json) -> dict[str, str]:
    metrics = report["metrics"]
    facts = {
        "Checkpoint": report["output"],
        "Reference": report["reference"] or "none",
        "Levels": ", ".join(report["levels"]),
    }
    if some := metrics.get("loss") or metrics.get("parity"):
        facts["Tokens"] = f"{number(some['tokens'])} in {number(some['sequences'])} sequences"
        facts["Forward in"] = metrics["dtype"]
        facts["Probes"] = f"{metrics['probes']['count']}"
    return facts | {"g4convert": report["g4convert"]}


@dataclass(frozen=True, slots=True)
class _CulpritLine:
    """A line that names the culprit of a failure; the subject is set in bold."""

    before: str
    subject: str
    after: str


def _culprit_lines(metrics: Json, findings: Sequence[Json]) -> Iterator[_CulpritLine]:
    """Yield a line with the culprit of each failed comparison; without a culprit, a line with the first failure."""
    failed = [finding for finding in findings if finding["severity"] == "fail"]
    named = False
    for kind in ("parity", "loss"):
        rows = metrics.get("blame", {}).get(kind, {}).get("rows", [])
        if rows and any(_is_about(finding, kind) for finding in failed):
            named = True
            share = 100 * number_of(rows[0]["share"])
            yield _CulpritLine(f"{kind}: ", rows[0]["module"], f", {share:.0f} % of the KL")
    if failed and not named:
        yield _CulpritLine("", failed[0]["subject"], f": {failed[0]['found']}")


def _is_about(finding: Json, kind: str) -> bool:
    return finding["code"].startswith(f"logits.{kind}.") or (kind == "parity" and finding["code"] == "logits.modules")


@dataclass(frozen=True, slots=True)
class _Group:
    """Findings of one severity; `folded` is the label that unfolds them, empty if they are always shown."""

    folded: str
    members: Sequence[Json]


def _group_findings(findings: Sequence[Json]) -> Iterator[_Group]:
    """Yield the findings by severity, worst first; PASS and INFO are folded away."""
    for kind in _ORDER:
        if members := [finding for finding in findings if finding["severity"] == kind]:
            yield _Group(_FOLDED.get(Severity(kind), ""), [*_drop_repeated_remedies(members)])


def _drop_repeated_remedies(findings: Sequence[Json]) -> Iterator[Json]:
    """Yield findings, and a remedy that several in a row share only with the last of them."""
    for finding, following in zip_longest(findings, findings[1:]):
        same = following is not None and following["remedy"] == finding["remedy"]
        yield {**finding, "remedy": ""} if same else finding
