"""Size against loss as an SVG file: the predicted frontier as a line, measured choices as points."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from g4convert.fitting.choosing import Point
from g4convert.quantities import round_size, size

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 90, 50
_UNITS: Final = {"KL": "KL, nats"}
"""Words for units of losses on the axis."""
_LEGEND: Final = {
    "frontier": "predicted from single changes",
    "preset": "shipped recipes, measured",
    "tried": "tried, measured",
    "chosen": "chosen, measured",
}
"""Words of the legend, by class."""
_RADIUS: Final = 5
_NAME_HEIGHT: Final = 14
_ASCENT: Final = 11
"""Distance from the top of a name to its base line, in pixels."""
_CHARACTER: Final = 6.8
"""Width of a character of a name, in pixels, rather too large than too small."""
_MOST_ROWS: Final = 12
"""Largest distance of a name from its point, in heights of a name."""
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#333}.faint{fill:#777}.grid{stroke:#ddd}"
    ".frontier{fill:none;stroke:#2563eb;stroke-width:2}.preset{fill:#d97706}.chosen{fill:#16a34a}.tried{fill:#9ca3af}"
    ".lead{stroke:#999}"
)


def draw_plot(
    title: str, unit: str, corners: Sequence[tuple[int, float]], presets: Sequence[Point], tried: Sequence[Point]
) -> str:
    """Draw the plot.

    Args:
        title: heading.
        unit: unit of the losses.
        corners: size and predicted loss along the frontier, from the smallest size on.
        presets: shipped recipes.
        tried: measured choices, the written choice last.

    Returns:
        The SVG. Losses are on a logarithmic axis; losses of 0 are drawn on its lower edge.
    """
    sizes = [nbytes for nbytes, _ in corners] + [point.nbytes for point in (*presets, *tried)]
    losses = [loss for _, loss in corners] + [point.measured for point in (*presets, *tried)]
    axes = _Axes.of(sizes, losses)
    line = " ".join(f"{axes.x(nbytes):.1f},{axes.y(loss):.1f}" for nbytes, loss in corners)
    body = [
        f'<text x="{_LEFT}" y="20">{escape(title)}</text>',
        f'<text class="faint" x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">size of all tensors</text>',
        f'<text class="faint" x="{_LEFT - 8}" y="{_TOP - 8}" text-anchor="end">{_UNITS.get(unit, unit)}</text>',
        *_draw_legend(),
        *axes.draw_grid(),
        f'<polyline class="frontier" points="{line}"><title>predicted from single changes</title></polyline>',
        *_draw_points(axes, presets, tried),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
    return f"{head}<title>{escape(title)}</title><style>{_STYLE}</style>{''.join(body)}</svg>\n"


def _draw_legend() -> Iterator[str]:
    """Yield the keys of the line and of the points, at the top right."""
    for place, (kind, words) in enumerate(reversed(_LEGEND.items())):
        y = 20 + 16 * place
        if kind == "frontier":
            mark = f'<line class="frontier" x1="{_WIDTH - 28}" x2="{_WIDTH - 14}" y1="{y - 4}" y2="{y - 4}"/>'
        else:
            mark = f'<rect class="{kind}" x="{_WIDTH - 26}" y="{y - 9}" width="10" height="10" rx="5"/>'
        yield f'{mark}<text x="{_WIDTH - 34}" y="{y}" text-anchor="end">{words}</text>'


class _Axes:
    """Axes of the plot: map sizes and losses to coordinates.

    Args:
        sizes: smallest and largest size, in bytes.
        powers: powers of ten between which the losses lie.
    """

    def __init__(self, sizes: tuple[int, int], powers: tuple[int, int]) -> None:
        self._sizes, self._powers = sizes, powers

    @classmethod
    def of(cls, sizes: Sequence[int], losses: Sequence[float]) -> "_Axes":
        logs = [math.log10(loss) for loss in losses if loss > 0] or [0.0]
        low, high = math.floor(min(logs)), math.ceil(max(logs))
        return cls((min(sizes), max(*sizes, min(sizes) + 1)), (low, max(high, low + 1)))

    def x(self, nbytes: float) -> float:
        """Return the x coordinate of a size."""
        least, most = self._sizes
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (nbytes - least) / (most - least)

    def y(self, loss: float) -> float:
        """Return the y coordinate of a loss."""
        low, high = self._powers
        share = (math.log10(loss) - low) / (high - low) if loss > 0 else 0.0
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def draw_grid(self) -> Iterator[str]:
        """Yield grid lines and axis labels."""
        low, high = self._powers
        for power in range(low, high + 1):
            y = self.y(10.0**power)
            yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="faint" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        least, most = self._sizes
        step = _choose_tick_step(most - least)
        for number in range(math.ceil(least / step), math.floor(most / step) + 1):
            place = f'x="{self.x(number * step):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle"'
            yield f'<text class="faint" {place}>{round_size(number * step)}</text>'


def _draw_points(axes: _Axes, presets: Sequence[Point], tried: Sequence[Point]) -> Iterator[str]:
    """Yield all points, each with its name where the name covers no other name and no point.

    The chosen point is drawn last, and its name is placed first.
    """
    kinds = [*(["preset"] * len(presets)), *(["tried"] * len(tried[:-1])), *(["chosen"] * len(tried[-1:]))]
    points = [(axes.x(point.nbytes), axes.y(point.measured), point) for point in (*presets, *tried)]
    covered = [_Box(x - _RADIUS, y - _RADIUS, 2 * _RADIUS, 2 * _RADIUS) for x, y, _ in points]
    places: list[_Box] = []
    for x, y, point in reversed(points):
        places.insert(0, _place_name(point.name, x, y, [*covered, *places]))
    for (x, y, point), kind, place in zip(points, kinds, places, strict=True):
        words = escape(f"{point.name}: {size(point.nbytes)}, {point.measured:.4g}")
        yield f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"><title>{words}</title></circle>'
        yield f'<text x="{place.x:.1f}" y="{place.y + _ASCENT:.1f}">{escape(point.name)}</text>'
        yield from _draw_lead(x, y, place)


def _draw_lead(x: float, y: float, place: "_Box") -> Iterator[str]:
    """Yield a line from a point to its name, if the name found no place beside it."""
    if abs(place.y + place.height / 2 - y) > place.height:
        near = min(max(x, place.x), place.x + place.width)
        edge = place.y if place.y > y else place.y + place.height
        yield f'<line class="lead" x1="{x:.1f}" x2="{near:.1f}" y1="{y:.1f}" y2="{edge:.1f}"/>'


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle of the plot, in pixels, from its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def covers(self, other: "_Box") -> bool:
        """Return whether two rectangles have a pixel in common."""
        beside = self.x + self.width <= other.x or other.x + other.width <= self.x
        return not (beside or self.y + self.height <= other.y or other.y + other.height <= self.y)


def _place_name(name: str, x: float, y: float, covered: Sequence[_Box]) -> _Box:
    """Return the place of a name that is nearest to its point and covers nothing.

    Args:
        name: the name.
        x: x coordinate of the point.
        y: y coordinate of the point.
        covered: rectangles of points and of other names.
    """
    width, gap = _CHARACTER * len(name), _RADIUS + 3
    lefts = (x + gap, x - gap - width)
    rows = sorted(range(-_MOST_ROWS, _MOST_ROWS + 1), key=lambda row: (abs(row), row))
    boxes = [
        _Box(left, y + row * _NAME_HEIGHT - _NAME_HEIGHT / 2, width, _NAME_HEIGHT)
        for row in rows
        for left in lefts
        if left >= _LEFT and left + width <= _WIDTH
    ]
    inside = [
        box
        for box in boxes
        if box.y >= _TOP - _NAME_HEIGHT and box.y + box.height <= _HEIGHT - _BOTTOM + _NAME_HEIGHT / 2
    ]
    free = (box for box in inside if not any(map(box.covers, covered)))
    return next(free, boxes[0] if boxes else _Box(_LEFT, y, width, _NAME_HEIGHT))


def _choose_tick_step(span: float) -> float:
    """Return a round distance of ticks, so that there are three to eight of them: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(span, 1.0) / 3))
    return max(power * times for times in (1, 2, 5) if power * times <= max(span, 1.0) / 3)
