"""The working directory of an output: OUT.partial, renamed to OUT when it is complete.

The journal is the first file in OUT.partial and the last to go, from OUT: a directory without one is no run's, and is
never removed. A stop of any kind leaves OUT.partial, and the same command continues it. An output to be overwritten is
renamed to OUT.replaced, which the journal records, and once the new one is in place to a hidden name, under which it is
deleted. What a kill leaves of all this, the next run does.
"""

import errno
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from tempfile import mkdtemp
from typing import Any

from g4convert.checkpoint.output_names import JOURNALS
from g4convert.conversion.journal import Done, Journal, is_journal, is_replaced, read_done
from g4convert.conversion.lock import Lock
from g4convert.conversion.resume import check_sizes
from g4convert.conversion.staging_checks import check_name, check_partial, check_replaceable
from g4convert.conversion.writer import ShardWriter, sync_directory, write_file
from g4convert.errors import EnvironmentFault, InputError
from g4convert.planning.layout import Layout
from g4convert.quantities import size
from g4convert.refusals import NO_ROOM, refusal

_BLOCK = 512
"""Bytes of what `st_blocks` counts."""
STATES = "states"
"""Directory in OUT.partial that holds the hidden states between calibrated layers."""


@dataclass(frozen=True, slots=True)
class Staging:
    """Paths of an output: final directory, OUT.partial, OUT.replaced and lock.

    Args:
        output: the output directory as the user gave it.
        target: the output directory as an absolute path without links.
    """

    output: Path
    target: Path

    @classmethod
    def of(cls, output: Path) -> "Staging":
        """Return the staging of `output`, resolved once: a link changed later in the run has no effect."""
        return cls(output, Path(os.path.realpath(output)))  # `resolve` raises where links go round

    @property
    def lock(self) -> Path:
        """Lock file, held by the only run that may write OUT.partial."""
        return self.target.with_name(f"{self.target.name}.lock")

    @property
    def partial(self) -> Path:
        """Directory in which the output grows."""
        return self.target.with_name(f"{self.target.name}.partial")

    @property
    def replaced(self) -> Path:
        """Directory in which an overwritten output waits until the new one has its name."""
        return self.target.with_name(f"{self.target.name}.replaced")

    @property
    def places(self) -> tuple[Path, ...]:
        """All that a run makes, renames or deletes, the output first."""
        named = bool(self.target.name)  # "/" has no name, so nothing has one beside it
        return (self.target, self.partial, self.replaced, self.deleted, self.lock) if named else (self.target,)

    @property
    def deleted(self) -> Path:
        """Directory under whose name an overwritten output is deleted."""
        return self.target.with_name(f".g4convert-{self.target.name}.deleting")

    def journal(self, rank: int = 0) -> Path:
        """Return the path of a rank's journal."""
        return self.partial / (f"journal-{rank}.jsonl" if rank else "journal.jsonl")

    @property
    def journals(self) -> list[Path]:
        """Journals in OUT, which got its name with them."""
        return [path for path in self.target.glob(JOURNALS) if is_journal(path)]

    def check(self, *, overwrite: bool, planned: Mapping[str, Any] | None = None) -> None:
        """Check that the output is new, empty, or a checkpoint that may be replaced.

        Args:
            overwrite: True if an existing checkpoint may be replaced.
            planned: version and entries of g4convert.json, to tell from those of the checkpoint that is there.

        Raises:
            UsageError: the output is none of these, lies below a file, is a mount point, or is the current directory.
        """
        check_name(self.output, self.target, (self.partial, self.replaced))
        self._check_replaceable(overwrite=overwrite, planned=planned)

    def _check_replaceable(self, *, overwrite: bool, planned: Mapping[str, Any] | None = None) -> None:
        is_free = not self.replaced.exists() or is_replaced(self.replaced, self.journals)
        in_the_way = None if is_free else self.replaced
        check_replaceable(self.output, self.target, in_the_way=in_the_way, overwrite=overwrite, planned=planned)

    def try_place(self, layout: Layout) -> None:
        """Check that OUT.partial can be made or is there, and that the shards fit on the disk; leaves nothing.

        Raises:
            EnvironmentFault: it cannot be made, or the disk is too small.
        """
        above = next(path for path in self.partial.parents if path.is_dir())
        try:
            Path(mkdtemp(prefix=".g4convert-", dir=above)).rmdir()
        except OSError as error:
            raise refusal(error, f"{self.partial}: cannot be made", hint="give -o another directory") from error
        need = sum(shard.size for shard in layout.shards)
        has = sum(path.lstat().st_blocks * _BLOCK for path in self.partial.rglob("*"))
        if need > shutil.disk_usage(above).free + has:
            raise _no_room(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), self.partial, layout)

    def reopen(
        self, fingerprint: Mapping[str, Any], names: Collection[str], layout: Layout, *, overwrite: bool
    ) -> dict[int, Done] | None:
        """Return the finished units in the journals of OUT.partial; None, with OUT.partial removed, if there are none.

        A directory without a journal is removed only if it is empty.

        Args:
            fingerprint: all facts that the output's bytes depend on.
            names: every file that this run writes, except the journals.
            layout: the shards.
            overwrite: True if an OUT.partial with another fingerprint may be removed.

        Raises:
            InputError: OUT.partial has another fingerprint, is damaged, or was not made by a run.
        """
        if not os.path.lexists(self.partial):
            return None
        has_journal = not self.partial.is_symlink() and any(self.partial.glob(JOURNALS))
        try:
            check_partial(self.partial, names, STATES, has_journal=has_journal)
            done = read_done(self.partial, fingerprint) if has_journal else None
            if done:
                check_sizes(self.partial, layout)
        except InputError:
            if not (has_journal and overwrite):
                raise
            done = None
        if not done:
            _remove(self.partial)
        return done or None

    def make(self, layout: Layout, fingerprint: Mapping[str, Any], write_known: Callable[[Path], None]) -> None:
        """Make OUT.partial: the journal, preallocated shards, side files, config and index.

        A disk that is too small is found here. A journal without units is not continued, so the rest may be missing.

        Args:
            layout: the shards.
            fingerprint: all facts that the output's bytes depend on.
            write_known: writes the files that need no weight into a directory.

        Raises:
            EnvironmentFault: the directory cannot be made, or the disk is too small.
        """
        partial = self.partial
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise refusal(error, f"{partial}: cannot be made", hint="give -o another directory") from error
        is_made = False
        try:
            Journal(self.journal(), fingerprint).close()
            with ShardWriter(partial, layout, create=True) as writer:
                writer.sync(shard.file for shard in layout.shards)
            write_known(partial)
            sync_directory(partial)
            is_made = True
        except OSError as error:
            if error.errno in NO_ROOM:
                raise _no_room(error, partial, layout) from error
            raise
        finally:
            if not is_made:
                self.drop()

    def drop(self) -> None:
        """Remove OUT.partial; called when no run can finish it."""
        with suppress(OSError):
            _remove(self.partial)

    def finish(self, files: Mapping[str, bytes], *, overwrite: bool) -> None:
        """Write the last files, rename OUT.partial to OUT, then delete the journals and the old output.

        Until it has its name the output is one that the same command continues, so a rename that fails costs no work.

        Args:
            files: contents by name.
            overwrite: True if an existing output may be replaced.

        Raises:
            UsageError: OUT is not empty and may not be replaced.
            EnvironmentFault: a directory cannot be renamed; says where the finished output is.
        """
        self._check_replaceable(overwrite=overwrite)
        for name, data in files.items():
            write_file(self.partial / name, data)
        for path in self.partial.glob(JOURNALS):
            if not is_journal(path):  # damaged, and done again
                path.unlink()
        if overwrite and self.target.exists() and any(self.target.iterdir()):
            with Journal(self.journal(), {}) as journal:
                journal.replace(self.target)
            _rename(self.target, self.replaced, f"move {self.target} away, and give the command again")
        sync_directory(self.partial)
        target = quote(str(self.target))
        moved = f"it is complete: mv {quote(str(self.partial))} {target} && rm {target}/{JOURNALS}"
        _rename(self.partial, self.target, moved)
        sync_directory(self.target.parent)
        self.clear()

    def clear(self) -> None:
        """Remove the journals, and the old output that one names; under the lock, also in the run after a kill.

        Raises:
            EnvironmentFault: the old output or a journal cannot be moved away.
        """
        journals = self.journals
        if is_replaced(self.replaced, journals):
            shutil.rmtree(self.deleted, ignore_errors=True)
            _rename(self.replaced, self.deleted, f"{self.output} is complete: delete the old output yourself")
        for path in journals:
            path.unlink()
        if journals:
            sync_directory(self.target)
        shutil.rmtree(self.deleted, ignore_errors=True)

    def tidy(self) -> None:
        """Call `clear` for an output that is done, where a kill or a user's own rename left something to do."""
        if self.journals or os.path.lexists(self.deleted):
            with Lock(self.lock) as lock:
                lock.take()
                self.clear()


def _no_room(error: OSError, partial: Path, layout: Layout) -> EnvironmentFault:
    return refusal(error, f"{partial}: no room for {size(sum(shard.size for shard in layout.shards))}")


def _remove(partial: Path) -> None:
    """Remove OUT.partial, the journals last: a kill leaves a directory that a run may remove."""
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not fnmatch(path.name, JOURNALS):
            path.unlink()
    shutil.rmtree(partial)


def _rename(directory: Path, name: Path, remedy: str) -> None:
    try:
        directory.rename(name)
    except OSError as error:
        raise EnvironmentFault(f"{directory}: cannot be renamed to {name}: {error.strerror}", hint=remedy) from error
