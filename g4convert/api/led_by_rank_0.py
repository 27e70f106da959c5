"""Runs what makes a calibration file in rank 0, while the other ranks take part in its pass for statistics."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.progress import Progress

T = TypeVar("T")


def run_in_lead(ranks: Ranks, workers: int, progress: Progress, make: Callable[[Ranks], T]) -> T:
    """Call a function in rank 0, help it in the others, and return its value in every rank.

    Args:
        ranks: this process among those of the run.
        workers: threads of this rank; 0 takes a share of the cores.
        progress: told if the ranks are on several hosts, so that rank 0 works alone.
        make: called in rank 0 with the ranks that share its pass; returns a small value, which is sent.

    Raises:
        G4Error: what `make` raises, in every rank.
        Interrupted: stopped on request; finished layers are kept.
    """
    hosts = ranks.hosts()  # several hosts do not map the same files
    if not ranks.leads:
        from g4convert.calibration.record import assist  # noqa: PLC0415 -- brings torch and transformers

        result: T = assist(ranks, workers)
        return result
    if len(hosts) > 1:
        progress.say(f"calibration: rank 0 works alone, as the ranks are on {len(hosts)} hosts: {', '.join(hosts)}")
    return ranks.lead(partial(make, ranks if len(hosts) == 1 else ALONE))
