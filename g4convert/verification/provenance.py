"""Check `static.provenance`: the output's record, g4convert.json, says that it was made of this reference.

The record has the source's files (sizes, headers, config.json) and a sample of each tensor's bytes:

    files    sample
    same     same      made of this reference
    other    same      made of these weights; files were sharded or saved anew, or config.json was
    same     other     made of other weights of the same shapes, as a model before and after its training: a failure
    other    other     made of another checkpoint: a warning, as all that follows may be due to it

Without a sample, in the record or in a stored reference, the files decide.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.reader import Reader
from g4convert.checkpoint.record import RECORD, record
from g4convert.conversion.fingerprint import sample_weights
from g4convert.report import Finding, Severity
from g4convert.request import Request

_CODE: Final = "static.provenance"
_MADE: Final = "made of this reference"
_OTHER: Final = "pass the checkpoint that it was made of; other faults may follow from this"


def check_provenance(asked: Request, reference: Checkpoint | None, facts: Mapping[str, Any]) -> Iterable[Finding]:
    """Yield a finding that compares the source in the output's record with the reference.

    Args:
        asked: the request.
        reference: the reference; None if it is a stored one.
        facts: metadata of a stored reference; empty if there is none.
    """
    source = part(record(asked.output), "source")
    if asked.reference is None:
        return
    if not isinstance(source.get("files"), dict):
        yield Finding(_CODE, Severity.INFO, RECORD, f"no {RECORD} that says so", _MADE)
        return
    files = hashlib.sha256(json.dumps(source["files"], sort_keys=True).encode()).hexdigest()
    same_files = files == (str(facts.get("source", "")) if reference is None else reference.digest())
    sample = source.get("sample")
    found_sample = _sample_of(reference, facts) if isinstance(sample, str) else None
    same_sample = same_files if found_sample is None else found_sample == sample
    if same_files and same_sample:
        yield Finding(_CODE, Severity.PASS, RECORD, _MADE, _MADE)
    elif same_sample:
        text = "made of these weights, in files or with a config.json that are not the reference's"
        yield Finding(_CODE, Severity.PASS, RECORD, text, _MADE)
    elif same_files:
        text = "made of other weights of the same names and sizes, as of a model before or after its training"
        yield Finding(_CODE, Severity.FAIL, RECORD, text, _MADE, f"quantize the reference, or {_OTHER}")
    else:
        text = f"made of another checkpoint, named {source.get('name')}"
        yield Finding(_CODE, Severity.WARN, RECORD, text, _MADE, _OTHER)


def _sample_of(reference: Checkpoint | None, facts: Mapping[str, Any]) -> str | None:
    """Return the sample of the reference's weights; None if a stored one has none."""
    if reference is not None:
        with Reader(reference.path, reference.weight_files) as reader:
            return sample_weights(reference, reader)
    sample = facts.get("sample")
    return sample if isinstance(sample, str) else None


def advise_other_source(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings; if the output was made of another checkpoint, faults have the remedy to pass that one."""
    bad = {Severity.FAIL, Severity.WARN}
    mismatch = next((finding for finding in findings if finding.code == _CODE and finding.severity in bad), None)
    for finding in findings:
        is_fault = finding.severity is Severity.FAIL and finding is not mismatch
        yield (
            replace(finding, remedy=f"OUT is {mismatch.found}: {mismatch.remedy}") if mismatch and is_fault else finding
        )
