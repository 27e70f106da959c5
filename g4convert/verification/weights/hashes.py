"""Check `weights.hash`: every shard has the bytes that its conversion wrote.

The other checks allow for rounding errors, and a flipped bit in a packed word or a scale may be no larger than these.
The hash finds any changed bit. It does not show that the conversion was right.
"""

from collections.abc import Iterator, Mapping

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.hashes import file_hashes
from g4convert.checkpoint.record import RECORD, record
from g4convert.report import Finding, Severity


def check_hashes(out: Checkpoint) -> Iterator[Finding]:
    """Compare every shard with its hash in g4convert.json."""
    recorded = _recorded_hashes(out)
    if not recorded:
        text = f"{RECORD} has no hashes of shards"
        yield Finding("weights.hash", Severity.INFO, RECORD, text, "one for each shard, as g4convert writes them")
        return
    wrong = 0
    for name, digest in file_hashes(out.path, out.weight_files).items():
        expected = recorded.get(name)
        if expected != digest:
            wrong += 1
            text = "no hash of it" if expected is None else f"xxh3_128 {digest}"
            remedy = "the file is not as it was written: copy it again, or quantize the source again"
            yield Finding("weights.hash", Severity.FAIL, name, text, f"{expected or 'one'}, as {RECORD} says", remedy)
    if not wrong:
        text = f"every byte as its conversion wrote it, by the XXH3 in {RECORD}"
        yield Finding("weights.hash", Severity.PASS, f"{len(recorded)} shards", text, "")


def _recorded_hashes(out: Checkpoint) -> Mapping[str, str]:
    """Return the recorded hash of each shard; empty without a record."""
    files = part(record(out.path), "files")
    return {name: str(part(files, name)["xxh3_128"]) for name in files if "xxh3_128" in part(files, name)}
