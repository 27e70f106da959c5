"""The page of `--html`: valid, self-contained, complete; and in a real browser neither cut off nor overflowing."""

import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Mapping
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.grids import one_in

from g4convert.report import Finding, Report, Severity
from g4convert.verification import gates, profiles
from g4convert.verification.logits.metrics import HISTOGRAM_EDGES
from g4convert.verification.page.html import page
from g4convert.verification.page.plots import number

VOID = {"meta", "br", "wbr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def metrics(seed: int, kl: float, *, layers: int, experts: int) -> dict[str, Any]:
    """Return made-up numbers in the form of `Metrics.to_dict`."""
    draw = random.Random(seed)  # noqa: S311 -- numbers for a picture
    histogram = [0] * (len(HISTOGRAM_EDGES) - 1)
    for _ in range(2000):
        value = kl * math.exp(draw.gauss(0, 1.5))
        histogram[max(0, min(len(histogram) - 1, int(4 * (math.log10(value) + 12))))] += 1
    hits = [[max(0, int(draw.gauss(30, 25))) for _ in range(experts)] for _ in range(layers)]
    main = {"kl_mean": kl, "kl_p99": 20 * kl, "top1_agreement": 1 - kl, "ppl_ratio": 1 + kl / 3}
    rest = {
        "tokens": 2000,
        "sequences": 40,
        "lower_bound": False,
        "kl_low": 0.9 * kl,
        "kl_high": 1.123 * kl,
        "kl_median": kl / 2,
        "kl_p999": 40 * kl,
        "kl_max": 70 * kl,
        "top1_confident": 1.0,
        "rms_dp": kl / 4,
        "logit_cosine": 1 - kl / 9,
        "logit_max_diff": 3.21,
        "sqnr_min": 17.5,
    }
    return {
        **main,
        **rest,
        "router_jaccard_min": 0.912,
        "experts_unhit": sum(row.count(0) for row in hits),
        "layers": [{"name": f"layers.{n}", "sqnr": 40 - n / 2 - 15 * (n > 16), "cosine": 0.99} for n in range(layers)],
        "embedders": [],
        "routers": [{"name": f"layers.{n}", "jaccard": 0.95, "hits": row} for n, row in enumerate(hits)],
        "buckets": [{"name": name, "tokens": 500, **main} for name in ("prose", "code", "non_latin", "image")],
        "probes": [],
        "by_confidence": [
            {"low": low, "high": high, "tokens": 400, "agreement": 0.5 + high / 2}
            for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 0.99), (0.99, 1.0))
        ],
        "kl_histogram": histogram,
    }


def report(*, layers: int = 30, experts: int = 128) -> dict[str, Any]:
    """A failing verification of a model of the size of 26B-A4B."""
    loss, parity = (metrics(n, kl, layers=layers, experts=experts) for n, kl in enumerate((0.0312, 0.0071)))
    noise = metrics(2, 0.0004, layers=layers, experts=0)
    row = {"module": "layers.17.experts", "share": 0.92, "kl": 0.00057, "sqnr": 3.25, "note": "differs: act_fn"}
    values = {
        "metrics_version": 1,
        "dtype": "bfloat16",
        "probes": {"count": 40, "digest": "0123456789abcdef"},
        "kl_histogram_edges": list(HISTOGRAM_EDGES),
        "loss": loss,
        "parity": parity,
        "floor": {"values": noise, "kl_histogram": noise["kl_histogram"], "layers": noise["layers"], "sources": {}},
        "blame": {"parity": {"kl": 0.0071, "control": 0.0071, "compared": 812, "rows": [row]}},
        "weights": {
            "tensors": [
                {"name": f"layers.{n}.mlp.up_proj", "relative_error": 0.006 + n / 1e4, "zero": 0.11} for n in range(60)
            ]
        },
    }
    findings = [
        finding
        for kind, profile in (("loss", "w4a16"), ("parity", "parity"))
        for finding in gates.judge(values[kind], profiles.load(profile), noise)
    ]
    findings += [
        Finding("static.ignore", Severity.FAIL, "model.embed_vision.<b>", "packed & ignored", "either", "repack it"),
        Finding("weights.kept", Severity.PASS, "72 tensors", "the bytes of the source", ""),
        Finding("logits.coverage", Severity.INFO, "experts", "most", "all"),
        Finding("weights.outlier", Severity.WARN, "layers.3.mlp.up_proj", "2.1 %", "at most 1.6 %"),
    ]
    levels = ("static", "weights", "logits")
    made = Report(tuple(findings), levels, values, "/data/gemma-4-26B-A4B-W4A16", "/data/gemma-4-26B-A4B")
    return json.loads(made.to_json())


class Checked(HTMLParser):
    """Parser that checks nesting and references, and collects the text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Goes deeper."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Stays."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        """Comes back."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Reads."""
        if "style" not in self.open:
            self.text += data + " "


def test_self_contained() -> None:
    markup = page(report())
    found = Checked(markup)
    assert markup.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    assert not {"src", "href", "srcset", "xlink:href", "action"} & {name for name, _ in found.attributes}
    assert not re.search(r"url\(|@import|https?:|//[a-z]|javascript:", markup)
    assert "prefers-color-scheme: dark" in markup
    assert ("name", "viewport") in found.attributes
    assert len(markup) < 1_500_000


def shown(value: float) -> str:
    return number(value, digits=3)


def test_every_number_of_the_tables_is_there() -> None:
    given = report(layers=6, experts=4)
    text = Checked(page(given)).text
    values = given["metrics"]
    single = ("kl_mean", "kl_low", "kl_high", "kl_median", "kl_p99", "kl_p999", "kl_max", "top1_agreement", "rms_dp")
    single += ("top1_confident", "ppl_ratio", "logit_cosine", "logit_max_diff", "sqnr_min", "router_jaccard_min")
    wanted = [shown(values[kind][name]) for kind in ("loss", "parity") for name in single]
    wanted += [shown(bucket["ppl_ratio"]) for kind in ("loss", "parity") for bucket in values[kind]["buckets"]]
    wanted += [shown(values["floor"]["values"][name]) for name in ("kl_mean", "rms_dp", "sqnr_min")]
    wanted += [one[key] for one in given["findings"] for key in ("found", "expected", "remedy")]
    wanted += ["92 %", "differs: act_fn", "3.25", "0.00057", "bfloat16", "2,000 in 40 sequences"]
    assert not [words for words in wanted if words not in text]
    assert "layers.17.experts" in re.sub(r"\. +", ".", text)


def test_every_number_of_the_plots_is_there() -> None:
    given = report(layers=6, experts=4)["metrics"]
    wanted = []
    for kind in ("loss", "parity"):
        values = given[kind]
        wanted.append(f"{kind}: {number(values['tokens'])} tokens")
        wanted += [f"{kind}, layer {one['name'][7:]}: {number(one['sqnr'])} dB" for one in values["layers"]]
        wanted += [f"{kind}: {number(100 * one['agreement'])} % of 400 tokens agree" for one in values["by_confidence"]]
        wanted += [f"{kind}: {number(count / 20)} % of tokens" for count in values["kl_histogram"] if count]
    for router in given["parity"]["routers"]:
        layer = router["name"][7:]
        wanted += [f"layer {layer}, expert {place}: {count} tokens" for place, count in enumerate(router["hits"])]
    text = Checked(page(report(layers=6, experts=4))).text
    assert len(wanted) > 80
    assert not [words for words in wanted if words not in text]


def test_worst_weights_come_first() -> None:
    text = Checked(page(report())).text
    names = re.findall(r"layers\. +(\d+)\. +mlp\. +up_proj +[\d.]+ %", text)
    assert [int(name) for name in names] == list(range(59, 39, -1))


def test_markup_in_a_report_is_text() -> None:
    given = report()
    assert "&lt;b&gt;" in page(given)
    given["output"] = "/data/<script>alert(1)</script>"
    assert "script" not in Checked(page(given)).tags


HOSTILE = (
    "layers.<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\x1b[31m\u202egnp.exe\x00{{ 7 * 7 }}.up_proj"
)


def hostile(value: object) -> object:
    """A report in which every name and text that a file may bring is hostile; layers are the model's own."""
    match value:
        case dict():
            named = {"output", "reference", "module", "note", "subject", "found", "expected", "remedy", "name"}
            return {
                key: f"{one}/{HOSTILE}" if key in named and isinstance(one, str) else hostile(one)
                for key, one in value.items()
            } | {key: value[key] for key in ("layers", "routers", "buckets") if key in value}
        case list():
            return [hostile(one) for one in value]
        case _:
            return value


def hostile_report() -> dict[str, Any]:
    found = hostile(report(layers=4, experts=4))
    assert isinstance(found, dict)
    return found


def test_hostile_names_are_text() -> None:
    plain, found = Checked(page(report(layers=4, experts=4))), Checked(page(hostile_report()))
    assert set(found.tags) == set(plain.tags)
    assert {name for name, _ in found.attributes} == {name for name, _ in plain.attributes}
    shown_text = re.sub(r"\. +", ".", found.text)
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;" in shown_text
    assert r"\x1b[31m\u202egnp.exe\x00{{ 7 * 7 }}" in shown_text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page(hostile_report()))


def test_a_policy_forbids_scripts_and_requests() -> None:
    attributes = Checked(page(report(layers=3, experts=3))).attributes
    assert ("http-equiv", "Content-Security-Policy") in attributes
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in attributes


@pytest.mark.parametrize("verdict", ["pass", "warn", "inconclusive", "fail"])
def test_the_page_begins_with_the_verdict(verdict: str) -> None:
    finding = Finding("static.ignore", Severity(verdict), "ignore", "something", "")
    markup = page(Report((finding,), ("static",), {}, "out").to_dict())
    assert f'<div class="verdict {verdict}">' in markup
    words = {"pass": "Pass", "warn": "Pass, with warnings", "inconclusive": "Inconclusive", "fail": "Fail"}
    assert words[verdict] in Checked(markup).text


def test_the_head_says_who_is_to_blame() -> None:
    text = Checked(page(report())).text
    assert re.search(r"parity: +layers\.17\.experts +, 92 % of the KL", text)
    given = report()
    given["metrics"]["blame"] = {}
    first = next(one for one in given["findings"] if one["severity"] == "fail")
    assert first["found"] in Checked(page(given)).text.partition("Checkpoint")[0]


def test_what_was_not_measured_has_no_section() -> None:
    titles = (
        "What quantization costs",
        "Expert coverage",
        "Which modules run differently from what is written",
        "Worst weights",
        "SQNR by layer",
        "Loss: KL of each token beside the noise floor",
    )
    text = Checked(page(report())).text
    assert not [title for title in titles if title not in text]
    given = report()
    given["metrics"] = {"kl_histogram_edges": given["metrics"]["kl_histogram_edges"]}
    text = Checked(page(given)).text
    assert not [title for title in titles if title in text]
    assert "Findings" in text
    given = report()
    del given["metrics"]["loss"], given["metrics"]["weights"]
    given["metrics"]["parity"] |= {"layers": [], "routers": [], "lower_bound": True}
    text = Checked(page(given)).text
    assert "Not seen in this candidate" in text
    assert "KL comes out about 3 % low" in text
    assert not [title for title in ("What quantization costs", "Expert coverage", "Worst weights") if title in text]


def test_the_worst_kind_of_probe_is_that_of_the_numbers() -> None:
    given = report(layers=3, experts=3)
    for bucket, kl in zip(given["metrics"]["loss"]["buckets"], (0.0246, 0.02, 0.0108, 0.012), strict=True):
        bucket["kl_mean"] = kl
    told = "The mean KL is largest in prose (0.0246) and smallest in non latin (0.0108)."
    assert told in Checked(page(given)).text
    del given["metrics"]["loss"]["buckets"][1:], given["metrics"]["parity"]["buckets"][1:]
    assert "The mean KL is largest" not in page(given)


def test_commands_are_code() -> None:
    given = report(layers=3, experts=3)
    given["findings"][0] |= {"severity": "fail", "remedy": "run `check OUT --fix`\n`-r a<b`: b", "found": "one `odd"}
    markup = page(given)
    assert "run <code>check OUT --fix</code>" in markup
    assert "<li><code>-r a&lt;b</code>: b</li>" in markup
    assert "one `odd" in markup


def test_equal_is_drawn_and_said() -> None:
    given = report()
    for layer in given["metrics"]["parity"]["layers"]:
        layer["sqnr"] = "inf"
    given["metrics"]["parity"] |= {"kl_mean": 0.0, "kl_low": "nan", "kl_high": "nan", "sqnr_min": "inf"}
    given["metrics"]["parity"]["kl_histogram"] = [2000] + [0] * (len(HISTOGRAM_EDGES) - 2)
    text = Checked(page(given)).text
    assert "Equal in every layer: parity." in text
    assert "parity, layer 3: equal" in text
    assert "\u221e" in text
    assert "parity: 100 % of tokens with KL below" in text


def test_numbers_are_short_and_exact_integers_whole() -> None:
    given = (0.0, 1.0, 1234567.0, 2000, 0.00012345, -3.5, 1e-12, "inf", "nan", None, 0.5)
    found = "0 1 1.235e6 2,000 0.0001234 \u22123.5 1e\u221212 \u221e \u2013 \u2013 0.5"
    assert " ".join(number(value) for value in given) == found


_MEASURE = """
<!DOCTYPE html><meta charset="utf-8"><body style="margin:0"><iframe width="WIDTH" height="9000" srcdoc="PAGE"></iframe>
<pre id="out"></pre><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement, bad = [];
  for (const text of page.querySelectorAll("svg text")) {
    const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
    if (box.x < -1 || box.x + box.width > view.width + 3 || box.y + box.height > view.height + 3)
      bad.push(text.textContent);
  }
  const small = [...page.querySelectorAll("svg:not(.strip svg) text")].filter(
    text => text.getBoundingClientRect().height < 8).length;
  const boxes = [...page.querySelectorAll("section, table, svg")].map(one => one.getBoundingClientRect());
  out.textContent = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth, bad, small, boxes: boxes.length,
    empty: boxes.filter(box => box.width < 50 || box.height < 20).length,
    columns: getComputedStyle(page.querySelector(".grid")).gridTemplateColumns.split(" ").length,
    colour: getComputedStyle(page.body).backgroundColor,
  });
};
</script>
"""


def browse(markup: str, directory: Path, *flags: str) -> str:
    (directory / "page.html").write_text(markup, encoding="utf-8")
    command = [
        CHROMIUM,
        *FLAGS,
        *flags,
        f"--user-data-dir={directory / 'profile'}",
        f"file://{directory / 'page.html'}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measured(markup: str, width: int, directory: Path, *flags: str) -> Mapping[str, Any]:
    """Return a browser's measurements of a page in a frame of some width."""
    frame = _MEASURE.replace("WIDTH", str(width)).replace("PAGE", escape(markup))
    dom = browse(frame, directory, "--dump-dom", *flags)
    return json.loads(unescape(dom.partition('<pre id="out">')[2].partition("</pre>")[0]))


browser = pytest.mark.skipif(CHROMIUM is None, reason="NOT RUN: no Chromium here (Debian: apt-get install chromium)")


@pytest.mark.wide
@browser
@pytest.mark.parametrize(("width", "columns"), one_in(3, [(1200, 2), (400, 1)]))
@pytest.mark.parametrize("size", one_in(3, [((30, 128),), ((3, 12),), ((60, 0),)]))
def test_in_a_browser(width: int, columns: int, size: tuple[int, int], tmp_path: Path) -> None:
    given = report(layers=size[0], experts=size[1] or 1)
    if not size[1]:
        given["metrics"]["loss"]["routers"] = given["metrics"]["parity"]["routers"] = []
    found = measured(page(given), width, tmp_path)
    assert found["scroll"] <= found["client"], "wider than the screen"
    assert found["bad"] == [], "text outside of its plot"
    assert (found["small"], found["empty"], found["columns"]) == (0, 0, columns)
    assert found["boxes"] > 15
    assert found["colour"] == "rgb(246, 247, 249)"


@pytest.mark.wide
@browser
@pytest.mark.parametrize("width", one_in(2, [400, 1200]))
def test_hostile_names_in_a_browser(width: int, tmp_path: Path) -> None:
    found = measured(page(hostile_report()), width, tmp_path)
    assert found["scroll"] <= found["client"], "wider than the screen"
    assert found["bad"] == [], "text outside of its plot"


@pytest.mark.full
@browser
def test_dark_in_a_browser(tmp_path: Path) -> None:
    dark = measured(page(report()), 1200, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert dark["colour"] == "rgb(16, 19, 23)"
