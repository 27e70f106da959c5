"""Check `weights.hash`: every shard has the bytes that its conversion wrote.

The other checks allow for rounding errors, and a flipped bit in a packed word or a scale may be no larger than these.
The hash finds any changed bit. It does not show that the conversion was right.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.hashes import file_hashes
from g4convert.checkpoint.record import RECORD, record
from g4convert.quantities import plural
from g4convert.report import Finding, Severity

_VALUES: Final = "level weights compares the values with those of the source all the same"
_DAMAGED: Final = (
    "the file is not as it was written: copy it again, or quantize the source again. If a program saved it anew, "
    f"remove `files` from {RECORD}, which has the hashes from before; {_VALUES}"
)
_SAVED_ANEW: Final = f"remove `files` from {RECORD} if a program saved the weights anew; {_VALUES}"


def check_hashes(out: Checkpoint) -> Iterator[Finding]:
    """Compare every shard with its hash in g4convert.json."""
    recorded = _recorded_hashes(out)
    if not recorded:
        text = f"{RECORD} has no hashes of shards"
        yield Finding("weights.hash", Severity.INFO, RECORD, text, "one for each shard, as g4convert writes them")
        return
    hashes = file_hashes(out.path, out.weight_files)
    wrong = [name for name, digest in hashes.items() if recorded.get(name, digest) != digest]
    unknown = [name for name in hashes if name not in recorded]
    for name in wrong:
        text = f"xxh3_128 {hashes[name]}"
        yield Finding("weights.hash", Severity.FAIL, name, text, f"{recorded[name]}, as {RECORD} says", _DAMAGED)
    if unknown and not wrong:  # else the files that fail say it
        text = f"no hash of {plural(len(unknown), 'shard')}: sharded or renamed after the conversion"
        yield Finding("weights.hash", Severity.WARN, RECORD, text, "one for each shard", _SAVED_ANEW)
    elif not wrong:
        text = f"every byte as its conversion wrote it, by the XXH3 in {RECORD}"
        yield Finding("weights.hash", Severity.PASS, plural(len(recorded), "shard"), text, "")


def _recorded_hashes(out: Checkpoint) -> Mapping[str, str]:
    """Return the recorded hash of each shard; empty without a record."""
    files = part(record(out.path), "files")
    return {name: str(part(files, name)["xxh3_128"]) for name in files if "xxh3_128" in part(files, name)}
