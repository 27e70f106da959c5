"""Checkpoints shared by the tests: made once in a session, never written to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

from g4convert.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; as the program does
settings.register_profile("g4convert", deadline=None)  # the first example compiles, and machines are busy
settings.load_profile("g4convert")


class Checkpoints(Protocol):
    """Gives the directory of a tiny checkpoint; see `g4convert.demo.make` for the arguments."""

    def __call__(self, family: str, *, dtype: str = "bfloat16", qat: bool = False) -> Path:
        """Make the checkpoint, or find the one made before."""
        ...


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir()}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoints]:
    """Tiny checkpoints by family, dtype and kind; a test that wants to change one copies it first."""
    import torch  # noqa: PLC0415 -- here and below: heavy imports only for the tests that use them

    from g4convert.demo import Family, make  # noqa: PLC0415

    torch.set_num_threads(1)  # tiny models run slower on more, the more so beside other test processes
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[Path, dict[str, tuple[int, int]]] = {}

    def get(family: str, *, dtype: str = "bfloat16", qat: bool = False) -> Path:
        directory = root / f"{family}-{dtype}{'-qat' * qat}"
        if directory not in made:
            try:
                make(Family(family), directory, dtype=dtype, qat=qat)
            except EnvironmentFault as fault:  # transformers 5.23.0 and assistants; not the pinned release
                pytest.skip(fault.message)
            made[directory] = _state(directory)
        return directory

    yield get
    changed = [directory.name for directory, state in made.items() if _state(directory) != state]
    assert not changed, f"tests wrote into shared checkpoints: {changed}"


@pytest.fixture(scope="session")
def moe(checkpoints: Checkpoints) -> Path:
    """26B-A4B: experts, k_eq_v, vision tower."""
    return checkpoints("moe")


@pytest.fixture(scope="session")
def dense(checkpoints: Checkpoints) -> Path:
    """31B: dense, k_eq_v, vision tower; every decoder in_features is a multiple of 128."""
    return checkpoints("dense")


@pytest.fixture(scope="session")
def unified(checkpoints: Checkpoints) -> Path:
    """12B: no towers, patch and sound embedders."""
    return checkpoints("unified")


@pytest.fixture(scope="session")
def e2b(checkpoints: Checkpoints) -> Path:
    """E2B: PLE, KV-shared layers, double-wide MLP, vision and audio towers."""
    return checkpoints("e2b")


@pytest.fixture(scope="session")
def text(checkpoints: Checkpoints) -> Path:
    """Gemma4ForCausalLM with an lm_head of its own."""
    return checkpoints("text")
