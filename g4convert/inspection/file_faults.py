"""A fault of a checkpoint's files in some engines: a name that they do not look for, or a file that is missing."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from g4convert.engines import CONTRACTS
from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.report import Finding, Severity

CODE: Final = "engines.files"
_HARMLESS: Final = {Topic.FLAG, Topic.NAMES}


@dataclass(frozen=True, slots=True)
class FileFault:
    """A fault of a file in some engines.

    Args:
        engines: the engines, keys of `CONTRACTS`.
        subject: the file.
        found: the fault.
        remedy: step that mends it.
        topic: `FLAG` or `NAMES` where the engines load the checkpoint nevertheless.
        option: the option with which they do, for `FLAG`.
    """

    engines: tuple[str, ...]
    subject: str
    found: str
    remedy: str
    topic: Topic = Topic.FILES
    option: str = ""

    @property
    def is_harmless(self) -> bool:
        """True if the engines load the checkpoint nevertheless."""
        return self.topic in _HARMLESS

    @property
    def remark(self) -> Remark:
        """The fault as a remark on one of its engines."""
        return Remark(self.topic, self.subject, Reason(self.found), (Remedy(self.remedy),), option=self.option)

    def finding(self, required: Collection[str]) -> Finding:
        """Return the fault as a finding, which fails if it keeps a required engine from loading the checkpoint."""
        names = ", ".join(CONTRACTS[engine].title for engine in self.engines)
        fails = not self.is_harmless and not set(self.engines).isdisjoint(required)
        severity = Severity.FAIL if fails else Severity.WARN
        return Finding(CODE, severity, self.subject, f"{self.found} ({names})", "", self.remedy)
