"""A search for tiles on times that are made up."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from g4convert.forward.triton.autotune import Gpu, TileChoice, search
from g4convert.forward.triton.tiles import Shape, Tile
from g4convert.progress import Progress

__all__ = ["tuned"]


class Given:
    """Stand-in for `bench.LayerBench`: nothing is compiled, and times are those of a function."""

    def __init__(self, time: Callable[[Shape, Tile], float]) -> None:
        self._time = time

    def try_out(self, _: Iterable[tuple[Shape, Tile]]) -> Iterator[str]:
        """Say nothing."""
        yield from ()

    def seconds(self, shape: Shape, tile: Tile, _: int) -> float:
        """Return the time of a product."""
        return self._time(shape, tile)


def tuned(
    shapes: Iterable[Shape],
    path: Path,
    time: Callable[[Shape, Tile], float],
    *,
    card: str = "a card",
    progress: Progress | None = None,
) -> dict[Shape, TileChoice]:
    """Search on a Hopper whose products take the given times."""
    return search(shapes, path, Gpu(card, 90), lambda _: Given(time), progress=progress)
