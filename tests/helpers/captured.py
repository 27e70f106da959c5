"""Stored references of tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.probe import Probe
from g4convert.progress import Progress
from g4convert.verification.logits import capture
from g4convert.verification.logits.capture import StoredReference


def store(
    candidate: ModelCandidate, probes: Sequence[Probe], path: Path, *, source: str = "", facts: Mapping[str, str] = {}
) -> StoredReference:
    """Run a model on probes and store its outputs; a file that is there is replaced."""
    return capture.capture(
        candidate,
        probes,
        path,
        source=source,
        facts=facts,
        overwrite=True,
        check=lambda: None,
        progress=Progress(),
    )
