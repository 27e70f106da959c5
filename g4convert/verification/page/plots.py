"""Plots as inline SVG: numbers in, markup out; colours and type come from the page's style.

Every plot has a title for screen readers, and every bar, point and cell has a tooltip. Sizes are in units of a view
box 420 wide, so that type of 12 units is 10 pixels high on a phone and 15 on a desktop.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Final

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 36
_INNER: Final = _WIDTH - _LEFT - _RIGHT
_DEPTH: Final = _HEIGHT - _TOP - _BOTTOM


_SIGNS: Final = {"nan": "\u2013", "inf": "\u221e", "-": "\u2212"}
"""En dash, infinity and minus."""


def number(value: float | str | None, digits: int = 4) -> str:
    """Format a number for people, with signs for nan, infinity and minus.

    Args:
        value: number as JSON has it; None is nan.
        digits: number of significant digits.
    """
    value = math.nan if value is None else float(value)
    if math.isnan(value):
        return _SIGNS["nan"]
    if math.isinf(value):
        text = _SIGNS["inf"] if value > 0 else f"-{_SIGNS['inf']}"
    elif value == int(value) and abs(value) < 1e6:
        text = f"{int(value):,}"
    else:
        mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
        text = f"{float(mantissa):g}e{int(exponent)}" if exponent else mantissa
    return text.replace("-", _SIGNS["-"])


def histogram(edges: Sequence[float], counts: Sequence[int], floor: Sequence[int], *, label: str, colour: str) -> str:
    """Draw the shares of tokens by KL on a logarithmic axis, with the outline of the noise floor.

    Args:
        edges: edges of the bins, one more than bins.
        counts: number of tokens in each bin; the first bin also has all smaller KLs.
        floor: counts of the noise floor in the same bins; may be empty.
        label: description of the bars.
        colour: colour of the bars: a, b or c.
    """
    shares, noise = _shares(counts), _shares(floor)
    filled = [place for place in range(len(counts)) if shares[place] or (noise and noise[place])]
    if not filled:
        return ""
    first, last = max(0, filled[0] - 1), min(len(counts) - 1, filled[-1] + 1)
    first, last = (max(0, last - 8), last) if last - first < 8 else (first, last)
    top = _nice(max([*shares, *noise]))
    width = _INNER / (last - first + 1)

    def place(edge: int) -> float:
        return _LEFT + (edge - first) * width

    body = [*_grid(top)]
    for power in range(math.ceil(math.log10(edges[first]) - 1e-6), math.floor(math.log10(edges[last + 1]) + 1e-6) + 1):
        edge = min(range(len(edges)), key=lambda i, power=power: abs(math.log10(edges[i]) - power))  # type: ignore[misc]
        sparse = edges[last + 1] / edges[first] > 1e7 and power % 2
        if not sparse:
            words = f"10{_superscript(power)}" if power else "1"
            body.append(_tick_x(place(edge), words if edge else "0"))  # the first bin has all smaller KLs
    for bin_ in range(first, last + 1):
        if shares[bin_]:
            height = _DEPTH * shares[bin_] / top
            words = f"{label}: {number(100 * shares[bin_])} % of tokens with KL {_range(edges, bin_)}"
            body.append(
                _rect(place(bin_) + 0.6, _TOP + _DEPTH - height, width - 1.2, height, f"series-{colour}", words)
            )
    if noise:
        body.append(_outline([(place(bin_), noise[bin_] / top) for bin_ in range(first, last + 1)], place(last + 1)))
    body.append(_axis_title("KL divergence of a token, nats"))
    return _svg(f"Histogram of KL, {label}, against the noise floor", body)


def lines(series: Mapping[str, Sequence[float]], names: Sequence[str], *, colours: Mapping[str, str], unit: str) -> str:
    """Draw a line for each series over the same places; infinite values lie on the top edge."""
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(0.0, math.floor(min(finite) / 20) * 20), math.ceil((max(finite) + 5) / 20) * 20
    step = _INNER / max(1, len(names) - 1)
    body = []
    for value in _steps(low, high):
        y = _TOP + _DEPTH * (1 - (value - low) / (high - low))
        body += [_line_y(y), _text(_LEFT - 6, y + 4, number(value), "end")]
    every = max(1, math.ceil(len(names) / 8))
    body += [_tick_x(_LEFT + place * step, names[place]) for place in range(0, len(names), every)]
    for label, values in series.items():
        colour = colours[label]
        points = []
        for place, value in enumerate(values):
            if not math.isnan(value):
                clamped = min(max(value, low), high)
                points.append(
                    (_LEFT + place * step, _TOP + _DEPTH * (1 - (clamped - low) / (high - low)), place, value)
                )
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        body.append(f'<polyline class="line line-{colour}" points="{path}"/>')
        radius = 3.5 if len(names) <= 16 else 2.2
        for x, y, place, value in points:
            words = f"{label}, layer {names[place]}: " + (
                f"{number(value)} {unit}" if math.isfinite(value) else "equal"
            )
            body.append(
                f'<circle class="dot dot-{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                f"<title>{escape(words)}</title></circle>"
            )
    body.append(_axis_title("decoder layer"))
    return _svg(f"SQNR by layer: {', '.join(series)}", body)


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    counts: Sequence[int],
    *,
    colours: Mapping[str, str],
    axis: str,
) -> str:
    """Draw bars from 0 to 100 % side by side, with the number of tokens under each group."""
    body = [*_grid(1.0)]
    width = _INNER / len(groups)
    bar_width = width * 0.7 / max(1, len(series))
    for place, (group, count) in enumerate(zip(groups, counts, strict=True)):
        middle = _LEFT + (place + 0.5) * width
        body.append(_text(middle, _TOP + _DEPTH + 14, group, "middle"))
        body.append(_text(middle, _TOP + _DEPTH + 26, f"{count:,}", "middle", "faint"))
        for index, (label, shares) in enumerate(series.items()):
            share = shares[place]
            if count and not math.isnan(share):
                height = max(0.8, _DEPTH * share)
                x = middle - bar_width * len(series) / 2 + index * bar_width
                words = f"{label}: {number(100 * share)} % of {count} tokens agree"
                body.append(
                    _rect(x + 0.8, _TOP + _DEPTH - height, bar_width - 1.6, height, f"series-{colours[label]}", words)
                )
    return _svg(f"Agreement of the likeliest token by {axis}", body, height=_HEIGHT)


def heat(rows: Mapping[str, Sequence[int]], *, what: str) -> str:
    """Draw a row of cells for each layer, darker for more hits; cells without hits are outlined."""
    columns = max(len(hits) for hits in rows.values())
    most = max(max(hits) for hits in rows.values()) or 1
    side = max(7.0, min(40.0, 960 / columns))
    tall = min(side, 18.0)
    width, height = _LEFT + columns * side + 8, len(rows) * tall + 26
    body = []
    for line, (name, hits) in enumerate(rows.items()):
        y = line * tall + 2
        if line % max(1, math.ceil(len(rows) / 15)) == 0:
            body.append(_text(_LEFT - 6, y + tall / 2 + 4, name, "end"))
        for place, count in enumerate(hits):
            strength = math.log1p(count) / math.log1p(most)
            words = f"layer {name}, {what} {place}: {count} tokens"
            style = f'style="fill-opacity:{0.12 + 0.88 * strength:.2f}"' if count else ""
            kind = "cell" if count else "cell empty"
            body.append(
                f'<rect class="{kind}" {style} x="{_LEFT + place * side + 0.5:.1f}" y="{y + 0.5:.1f}" '
                f'width="{side - 1:.1f}" height="{tall - 1:.1f}"><title>{escape(words)}</title></rect>'
            )
    every = max(1, 2 ** math.ceil(math.log2(max(1, columns / 12))))
    ticks = range(0, columns, every)
    body += [_text(_LEFT + (place + 0.5) * side, height - 8, str(place), "middle") for place in ticks]
    return _svg(f"Tokens that each {what} got, by layer", body, width=width, height=height, fixed=True)


def share_bar(share: float) -> str:
    """Draw a thin bar for a share from 0 to 1."""
    width = 100 * min(1.0, max(0.0, share))
    return f'<span class="share"><span style="width:{width:.1f}%"></span></span>'


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts] if total else []


def _range(edges: Sequence[float], bin_: int) -> str:
    if bin_ == 0:
        return f"below {number(edges[1])}"
    return f"{number(edges[bin_])} to {number(edges[bin_ + 1])}"


def _nice(value: float) -> float:
    """Return the smallest round share that is at least `value`."""
    return next((step for step in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if value <= step), 1.0)


def _steps(low: float, high: float) -> Iterator[float]:
    step = next(step for step in (10, 20, 40, 50, 100, 200) if (high - low) / step <= 6 or step == 200)
    value = math.ceil(low / step) * step
    while value <= high:
        yield value
        value += step


def _grid(top: float) -> Iterator[str]:
    for part in range(5):
        y = _TOP + _DEPTH * (1 - part / 4)
        value = top * part / 4
        yield _line_y(y)
        yield _text(_LEFT - 6, y + 4, f"{number(round(100 * value, 2))} %", "end")


def _outline(steps: Sequence[tuple[float, float]], end: float) -> str:
    """Draw the top edges of bars as one line."""
    points = []
    for (x, share), (right, _) in pairwise([*steps, (end, 0.0)]):
        y = _TOP + _DEPTH * (1 - share)
        points += [f"{x:.1f},{y:.1f}", f"{right:.1f},{y:.1f}"]
    return f'<polyline class="line floor" points="{" ".join(points)}"><title>noise floor</title></polyline>'


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _line_y(y: float) -> str:
    return f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _tick_x(x: float, words: str) -> str:
    return _text(x, _TOP + _DEPTH + 15, words, "middle")


def _axis_title(words: str) -> str:
    return _text(_LEFT + _INNER / 2, _HEIGHT - 5, words, "middle", "faint")


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text{classes} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str, words: str) -> str:  # noqa: PLR0913, PLR0917 -- a box
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="{height:.1f}">'
        f"<title>{escape(words)}</title></rect>"
    )


def _svg(
    title: str, body: Iterable[str], *, width: float = _WIDTH, height: float = _HEIGHT, fixed: bool = False
) -> str:
    """Return the SVG element; with `fixed` it is never shown larger than its view box in pixels."""
    style = f' style="max-width:{width:.0f}px"' if fixed else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {box}{style} role="img"><title>{escape(title)}</title>{"".join(body)}</svg>'
