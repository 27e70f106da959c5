"""Shares the work of a layer between the ranks of a run, and between the threads of each.

Every rank runs the same code on the same files of states. Work that falls into parts which do not depend on each other
is shared: each rank does its own parts, and is given those of the others.

    sequences    in turns; their states go to files that all ranks map
    sums         strips of columns, in turns; each sum has all sequences, in token order
    weights      tiles of rows; a rank has neighbouring ones
    experts      in turns; rank 0 adds up their outputs, in the order of experts

Parts have one size whatever the number of ranks or threads, so the bytes are those of one rank with one thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import TypeVar

import torch

from g4convert.conversion.ranks import ALONE, Ranks

T = TypeVar("T")

_ROWS = 256
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Team:
    """The threads of this rank, and the ranks that share a layer with it.

    Args:
        pool: threads of this rank; torch must run single-threaded in them.
        ranks: this rank among the others.
    """

    pool: Executor
    ranks: Ranks = ALONE

    @property
    def alone(self) -> "Team":
        """The threads of this rank, for work that no other rank shares."""
        return Team(self.pool)

    def own(self, parts: Sequence[T]) -> Sequence[T]:
        """Return the parts that this rank does: every n-th of n ranks."""
        return parts[self.ranks.rank :: self.ranks.world]

    def do(self, call: Callable[[T], object], parts: Iterable[T]) -> None:
        """Call with each part, in threads."""
        for _ in self.pool.map(call, parts):
            pass

    def each(self, call: Callable[[int], T], sequences: Iterable[int]) -> Iterator[tuple[int, T]]:
        """Call with each sequence, a few at a time, and yield the results in order."""

        def quiet(s: int) -> T:
            with torch.no_grad():  # a setting of each thread
                return call(s)

        yield from in_order(self.pool, quiet, sequences)

    def shared(self, call: Callable[[int], T], samples: int) -> Iterator[tuple[int, T]]:
        """Call with each of this rank's sequences, yield the results in order, and wait for the other ranks."""
        yield from self.each(call, self.own(range(samples)))
        self.ranks.wait()

    def gathered(self, call: Callable[[int], T], count: int, ahead: int = 16) -> Iterator[tuple[int, T]]:
        """Call with each number below `count`, and yield all results in order, in every rank.

        Args:
            call: called with the numbers that are this rank's.
            count: number of numbers.
            ahead: results of each rank that are sent at a time.
        """
        if self.ranks.world == 1:
            yield from self.each(call, range(count))
            return
        for first in range(0, count, ahead * self.ranks.world):
            numbers = range(first, min(first + ahead * self.ranks.world, count))
            own = [*self.each(call, self.own(numbers))]
            yield from sorted(chain(*self.ranks.gather(own)), key=itemgetter(0))

    def spread(self, parts: Sequence[torch.Tensor]) -> None:
        """Fill the parts of other ranks, which are theirs in turns, with what those ranks put into them."""
        for number, part in enumerate(parts):
            self.ranks.share(part, number % self.ranks.world)

    def rows(self, n: int) -> slice:
        """Return this rank's rows of a weight with `n` rows: neighbouring tiles."""
        return self._rows(n, self.ranks.rank)

    def spread_rows(self, whole: torch.Tensor) -> None:
        """Fill the rows of other ranks with what those ranks put into them."""
        for rank in range(self.ranks.world):
            self.ranks.share(whole[self._rows(len(whole), rank)], rank)

    def _rows(self, n: int, rank: int) -> slice:
        tiles = -(-n // _ROWS)
        first, last = (tiles * one // self.ranks.world * _ROWS for one in (rank, rank + 1))
        return slice(first, min(last, n))


@contextmanager
def threads(workers: int) -> Iterator[Executor]:
    """Yield a pool in whose threads torch is single-threaded: products do not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, "layer", initializer=partial(torch.set_num_threads, 1)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # a stop waits for what runs, not for what is queued
                raise
    finally:
        torch.set_num_threads(before)


def row_tiles(n: int) -> Iterator[slice]:
    """Yield the tiles of `n` rows."""
    return (slice(first, min(first + _ROWS, n)) for first in range(0, n, _ROWS))


def in_order(pool: Executor, call: Callable[[int], T], numbers: Iterable[int]) -> Iterator[tuple[int, T]]:
    """Run calls in threads and yield their results in the order of `numbers`, with few calls ahead."""
    waiting: deque[tuple[int, Future[T]]] = deque()
    for number in numbers:
        waiting.append((number, pool.submit(call, number)))
        if len(waiting) > _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
