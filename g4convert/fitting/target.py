"""The target of a fit: a size, bits per weight, or a loss."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Final, TypeAlias

from g4convert.errors import UsageError
from g4convert.fitting.problem import Problem
from g4convert.planning.rules import PackRole
from g4convert.quantities import exact_size, parse_size, size

_OPTIONS = "--target-size, --target-bits or --max-kl"
_FEWEST_BITS: Final = 4
"""Fewest bits that a packing has."""
_MAX_ROLES: Final = 2
"""Most roles that a hint names."""


@dataclass(frozen=True, slots=True)
class Size:
    """A target in bytes of all output tensors."""

    nbytes: int

    @property
    def text(self) -> str:
        """The command-line option of this target, the same for all spellings of a size."""
        return f"--target-size {exact_size(self.nbytes)}"

    def bytes_of(self, _: Problem) -> int:
        """Return the target's bytes of all tensors."""
        return self.nbytes


@dataclass(frozen=True, slots=True)
class Bits:
    """A target in mean bits per weight of the free parts, scales included."""

    bits: float

    @property
    def text(self) -> str:
        """The command-line option of this target."""
        return f"--target-bits {self.bits:g}"

    def bytes_of(self, problem: Problem) -> int:
        """Return the target's bytes of all tensors; `weight_shape` tensors do not count as bits."""
        return problem.fixed_bytes + problem.shape_bytes + int(self.bits * problem.params / 8)


@dataclass(frozen=True, slots=True)
class Loss:
    """A target of at most this mean KL to the original, in nats."""

    kl: float

    @property
    def text(self) -> str:
        """The command-line option of this target."""
        return f"--max-kl {self.kl:g}"


Target: TypeAlias = Size | Bits | Loss


def parse_target(size_text: str | None, bits: float | None, kl: float | None) -> Target:
    """Parse the target options; exactly one must be given.

    Raises:
        UsageError: no or several options are given, or the value is no size or no positive number.
    """
    values = [value for value in (size_text, bits, kl) if value is not None]
    if len(values) != 1:
        raise UsageError(f"a fit has one target, {_OPTIONS}: {len(values)} given", hint="such as --target-bits 4.75")
    if size_text is not None:
        nbytes = parse_size(size_text)
        if not nbytes:
            raise UsageError(
                f"--target-size {size_text}: expected a size above 0, in KB, MB, GB, KiB, MiB, GiB or bytes",
                hint="such as --target-size 14GB",
            )
        return Size(nbytes)
    if bits is not None:
        return Bits(_check_positive("--target-bits", bits))
    return Loss(_check_positive("--max-kl", kl or 0.0))


def check_budget(target: Size | Bits, problem: Problem) -> int:
    """Return the bytes of all tensors that a target allows.

    Raises:
        UsageError: the target is below the smallest output, or not below an output that keeps every free part.
    """
    nbytes, smallest, largest = target.bytes_of(problem), problem.smallest_bytes, problem.kept_bytes
    if nbytes < smallest:
        raise UsageError(
            f"{target.text}: below the smallest output, {_format_exactly(smallest, problem.bits(smallest))}",
            hint="; ".join(_hint_at_smaller(problem)),
        )
    if nbytes >= largest:
        raise UsageError(
            f"{target.text}: not below every weight as it is, {_format_exactly(largest, problem.kept_bits)}",
            hint=f"a target below that; nothing is decided on {size(problem.fixed_bytes)} of it",
        )
    return nbytes


def _hint_at_smaller(problem: Problem) -> Iterator[str]:
    """Yield hints on how to make the smallest output of a problem smaller."""
    kept_bytes = Counter[PackRole]()
    for part in problem.parts:
        if part.base is None and not part.is_free:
            kept_bytes[part.role] += part.nbytes(None)
    yield f"{size(problem.fixed_bytes)} of it are not decided on"
    if kept_bytes:
        roles = (
            f"--bits {role}={_FEWEST_BITS} ({size(nbytes)})" for role, nbytes in kept_bytes.most_common(_MAX_ROLES)
        )
        yield f"{' or '.join(roles)} would decide on more of it"
    if all(form is None or form.num_bits > _FEWEST_BITS for part in problem.free for form in part.forms):
        yield f"--choice {_FEWEST_BITS}:32 is smaller than those given"


def _format_exactly(nbytes: int, bits: float) -> str:
    """Format a size in every unit that a target accepts."""
    return f"{size(nbytes)} of tensors ({nbytes} bytes, {bits:.3f} bits a weight)"


def _check_positive(option: str, value: float) -> float:
    if not isfinite(value) or value <= 0:
        raise UsageError(f"{option} {value:g}: expected a number above 0")
    return value
