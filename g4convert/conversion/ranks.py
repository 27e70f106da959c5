"""Several processes, possibly on several hosts, that write one output on a shared file system.

Under `torchrun` each process is a rank. All ranks compute the same plan, so rank 0 only has to prepare the output and
send the numbers of the pending units. Of n ranks, rank r takes units r, r + n, r + 2n and so on of these, and rank 0
finishes. Without `torchrun` there is one rank, and torch is not imported.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from socket import gethostname
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from g4convert.conversion.fingerprint import differences
from g4convert.errors import EnvironmentFault, G4Error, Interrupted, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""Longest wait for a slower rank; a rank that dies closes its connection at once."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of this process, and the number of ranks of the run."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls) -> "Ranks":
        """Connect to the ranks that `torchrun` started, over gloo; without `torchrun` return a single rank.

        Raises:
            EnvironmentFault: the other ranks cannot be reached.
        """
        if os.environ.get("WORLD_SIZE", "1") in {"", "0", "1"}:
            return cls()
        from torch import distributed

        try:
            _call_in_thread(lambda: distributed.init_process_group("gloo", timeout=_PATIENCE))
        except (RuntimeError, ValueError) as error:
            raise EnvironmentFault(
                f"torch.distributed: {_first_line(error)}",
                hint="start all ranks with the same `torchrun` command",
            ) from error
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def from_lead(self, value: T | G4Error | None) -> T:
        """Return rank 0's value in every rank; if it is an error, raise it in every rank.

        Raises:
            G4Error: the error that rank 0 sent.
            EnvironmentFault: a rank is gone.
        """
        received = [value]
        if self.world > 1:
            from torch import distributed

            try:
                _call_in_thread(lambda: distributed.broadcast_object_list(received, src=0))
            except RuntimeError as error:
                raise self._lost_rank(error) from error
        if isinstance(received[0], G4Error):
            raise received[0]
        return received[0]  # type: ignore[return-value] # None is sent by the other ranks only

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that every rank has the same facts.

        Args:
            facts: facts of this rank, as JSON.

        Raises:
            UsageError: a rank differs from rank 0; the same error in every rank, with every difference.
            EnvironmentFault: a rank is gone.
        """
        lead, *others = self.gather(facts)
        differing = [
            f"rank {rank}: {key} is {value!r}, in rank 0 {lead_value!r}"
            for rank, other in enumerate(others, 1)
            for key, lead_value, value in differences(lead, other)
        ]
        if differing:
            hint = "start every rank with the same command, version and source"
            raise UsageError("the ranks do not do the same", offenders=differing, hint=hint)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in every rank.

        Raises:
            EnvironmentFault: a rank is gone.
        """
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[T | None] = [None] * self.world
        try:
            _call_in_thread(lambda: distributed.all_gather_object(values, value))
        except RuntimeError as error:
            raise self._lost_rank(error) from error
        return values  # type: ignore[return-value] # gathered from every rank

    def lead(self, call: Callable[[], T]) -> T:
        """Call a function in rank 0, and return its value in every rank; its error is raised in all.

        Raises:
            G4Error: the error of the call.
            Interrupted: rank 0 was stopped; raised there at once, as the others may be in the midst of a layer, and
                end with its process.
            EnvironmentFault: a rank is gone.
        """
        if not self.leads:
            return self.from_lead(None)
        result = _catch(call)
        if isinstance(result, Interrupted) and self.world > 1:
            raise result
        return self.from_lead(result)

    def together(self, call: Callable[[], T]) -> list[T]:
        """Call a function in every rank, and return all results in every rank; one rank's error is raised in all.

        Raises:
            G4Error: the first error, by rank.
            EnvironmentFault: a rank is gone.
        """
        results: list[T] = []
        for result in self.gather(_catch(call)):
            if isinstance(result, G4Error):
                raise result
            results.append(result)
        return results

    def hosts(self) -> list[str]:
        """Return the names of the hosts that ranks are on."""
        return sorted({*self.gather(gethostname())})

    def wait(self) -> None:
        """Wait until every rank is here.

        Raises:
            EnvironmentFault: a rank is gone.
        """
        self.gather(None)

    def share(self, values: "Tensor", owner: int) -> None:
        """Fill a tensor, or a part of one, with what the rank `owner` has there.

        Raises:
            EnvironmentFault: a rank is gone.
        """
        if self.world == 1 or not values.numel():
            return
        from torch import distributed

        sent = values.contiguous().cpu()
        try:
            _call_in_thread(lambda: distributed.broadcast(sent, src=owner))
        except RuntimeError as error:
            raise self._lost_rank(error) from error
        if self.rank != owner:
            values.copy_(sent)

    def leave(self) -> None:
        """Close the connections; not after an interrupt: a call may still wait, and the process ends anyway."""
        if self.world > 1 and not isinstance(sys.exception(), KeyboardInterrupt):
            from torch import distributed

            distributed.destroy_process_group()

    def _lost_rank(self, error: RuntimeError) -> EnvironmentFault:
        return EnvironmentFault(
            f"rank {self.rank} of {self.world}: another rank is gone: {_first_line(error)}",
            hint="finished work is kept; the same command continues",
        )


ALONE: Final = Ranks()
"""The rank of a process that no other shares its output with."""


def _catch(call: Callable[[], T]) -> T | G4Error:
    """Return the result of a call, or the error that it raised, to be sent to other ranks."""
    try:
        return call()
    except G4Error as error:
        return error


def _call_in_thread(call: Callable[[], object]) -> None:
    """Run a call of torch.distributed in a thread: it may wait for days, and Python heeds no signal within it."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 -- raised again below
            ended.put(error)
        else:
            ended.put(None)

    Thread(target=run, daemon=True).start()
    if (error := ended.get()) is not None:
        raise error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
