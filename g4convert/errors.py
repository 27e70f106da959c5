"""The exceptions of g4convert, one tree.

    G4Error                    an error that the user can act on     (exit 3)
    ├── UsageError             options that contradict each other, a bad recipe (exit 2)
    ├── InputError             the source checkpoint is not usable   (exit 3)
    │   ├── FormatError        a file breaks its own format: truncated, overlapping, not JSON
    │   └── UnsupportedError   well-formed, but not something g4convert converts
    ├── GateError              a check that the user requested failed (exit 1)
    ├── EnvironmentFault       disk, memory, device or a peer process failed (exit 5)
    ├── InternalFault          a fault of g4convert itself (exit 70)
    └── Interrupted            stopped on request, the same command resumes (exit 75)

An exception has a message of one line (subject, value found, value expected), the offenders if there are several, and a
hint: the remedy. The command line prints `error:` with the message, the offenders, then `hint:`.
"""

from collections.abc import Iterable


class G4Error(Exception):
    """Base class of errors that the user can act on.

    Args:
        message: the subject, the value found and the value expected, in one line.
        offenders: all items that the message is about, one line each.
        hint: the remedy in one line; empty if the message contains it.
    """

    exit_code = 3

    def __init__(self, message: str, *, offenders: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.offenders = tuple(offenders)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message, *(f"  {line}" for line in self.offenders)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class UsageError(G4Error):
    """Raised when options contradict each other or a recipe is not valid."""

    exit_code = 2


class InputError(G4Error):
    """Raised when the source checkpoint cannot be used."""


class FormatError(InputError):
    """Raised when a file breaks its own format: truncated, overlapping, not JSON."""


class UnsupportedError(InputError):
    """Raised when the input is well-formed but not something g4convert converts."""


class GateError(G4Error):
    """Raised when a check that the user requested failed."""

    exit_code = 1


class EnvironmentFault(G4Error):
    """Raised when the disk, memory, a device or a peer process failed."""

    exit_code = 5


class InternalFault(G4Error):
    """Raised when g4convert itself failed unexpectedly; neither a verdict nor a fault of the input."""

    exit_code = 70


class Interrupted(G4Error):
    """Raised when the run was stopped on request; the same command continues it."""

    exit_code = 75
