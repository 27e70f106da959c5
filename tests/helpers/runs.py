"""Conversions in this process, and the hashes of what they write."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.planning.recipe_files import load
from g4convert.progress import Progress


def hashes(directory: Path) -> Mapping[str, str]:
    """sha256 of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def job(source: Path, output: Path, *, overwrite: bool = False, workers: int = 2, **options: object) -> Job:
    return Job(Source.at(source), load(options=options), output, workers=workers, overwrite=overwrite)


def run(
    source: Path, output: Path, *, overwrite: bool = False, workers: int = 2, **options: object
) -> Mapping[str, str]:
    convert(prepare(job(source, output, overwrite=overwrite, workers=workers, **options)), Progress(), Ranks())
    return hashes(output)
