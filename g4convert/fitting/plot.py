"""Size against loss as an SVG file: the predicted frontier as a line, measured choices as points."""

import math
from collections.abc import Iterator, Sequence
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
_LABEL_HEIGHT: Final = 14
"""Least distance of two labels above each other, in pixels."""
_LABEL_WIDTH: Final = 130
"""Width of a label, in pixels; those that are closer must not be at one height."""
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#333}.faint{fill:#777}.grid{stroke:#ddd}"
    ".frontier{fill:none;stroke:#2563eb;stroke-width:2}.preset{fill:#d97706}.chosen{fill:#16a34a}.tried{fill:#9ca3af}"
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
        *(axes.draw_point(point, "preset") for point in presets),
        *(axes.draw_point(point, "tried") for point in tried[:-1]),
        *(axes.draw_point(point, "chosen") for point in tried[-1:]),
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
        self._labels: list[tuple[float, float]] = []

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

    def draw_point(self, tried: Point, kind: str) -> str:
        """Draw a point with its name beside it, below the names that were drawn before if they are close."""
        x, y = self.x(tried.nbytes), self.y(tried.measured)
        words = escape(f"{tried.name}: {size(tried.nbytes)}, {tried.measured:.4g}")
        end = "end" if x > _WIDTH / 2 else "start"
        beside, above = x + (-8 if end == "end" else 8), y - 6
        while any(
            abs(beside - other) < _LABEL_WIDTH and abs(above - height) < _LABEL_HEIGHT for other, height in self._labels
        ):
            above += _LABEL_HEIGHT
        self._labels.append((beside, above))
        label = f'<text x="{beside:.1f}" y="{above:.1f}" text-anchor="{end}">'
        dot = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{words}</title></circle>'
        return f"{dot}{label}{escape(tried.name)}</text>"


def _choose_tick_step(span: float) -> float:
    """Return a round distance of ticks, so that there are three to eight of them: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(span, 1.0) / 3))
    return max(power * times for times in (1, 2, 5) if power * times <= max(span, 1.0) / 3)
