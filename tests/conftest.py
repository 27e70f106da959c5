"""Checkpoints shared by the tests: made once in a run, for all its processes, and never written to.

The processes also share what numba compiles, and none of them waits until a file is on the disk.
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher

from g4convert.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# before torch is loaded; tiny models run slower on more threads than one, also in processes that tests start
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
gc.disable()  # until all tests are collected: what modules make stays
# no deadline: the first example compiles, and machines are busy
settings.register_profile("usual", deadline=None, max_examples=12, derandomize=True)
settings.register_profile("full", deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--wide` and `--full`."""
    parser.addoption("--wide", action="store_true", help="also run what is marked kernels or wide, as `make test` does")
    parser.addoption("--full", action="store_true", help="run all tests, also those that are marked full")


def pytest_configure(config: pytest.Config) -> None:
    """Properties are tried on few examples, the same in each run; with `--full` on many, others each time."""
    settings.load_profile("full" if config.getoption("--full") else "usual")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `kernels`, `wide` or `full`, unless it is asked for."""
    if config.getoption("--full"):
        return
    beyond = {"full"} if config.getoption("--wide") else {"kernels", "wide", "full"}
    left_out = [item for item in items if any(map(item.get_closest_marker, beyond))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not any(map(item.get_closest_marker, beyond))]


def pytest_collection_finish() -> None:
    """Keep modules and tests out of garbage collections: they stay, and there are millions of objects in them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Write files without waiting for the disk, and compile each function in one process of the run.

    A power cut cannot be tested, and the tests write thousands of files. Where one process compiles a function, another
    that needs it waits, and then reads it from numba's cache.
    """
    locks = _shared(tmp_path_factory) / "compiled"
    locks.mkdir(exist_ok=True)
    compile_here = Dispatcher.compile

    def compile_once(dispatcher: Any, signature: Any) -> Any:  # noqa: ANN401 -- numba's
        function = dispatcher.py_func
        with global_compiler_lock, _locked(locks / f"{function.__module__}.{function.__qualname__}"):
            return compile_here(dispatcher, signature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(os, "fdatasync", lambda _: None)
        patch.setattr(Dispatcher, "compile", compile_once)
        if configs := sys.modules.get("transformers.configuration_utils"):
            patch.setattr(configs.PreTrainedConfig, "__repr__", object.__repr__)  # made for a log at each reading
        yield


def pytest_runtest_setup() -> None:
    """Start each test from one state of torch's generator, if torch is loaded: what fails once fails again."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)  # that of the CPU alone: `torch.manual_seed` asks for every device


class Checkpoints(Protocol):
    """Gives the directory of a tiny checkpoint; see `g4convert.demo.make` for the arguments."""

    def __call__(self, family: str, *, dtype: str = "bfloat16", qat: bool = False) -> Path:
        """Make the checkpoint, or find the one made before."""
        ...


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir()}


def _shared(factory: pytest.TempPathFactory) -> Path:
    """The directory of the whole run: that of a worker of pytest-xdist lies in it."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, no other process is inside."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoints]:
    """Tiny checkpoints by family, dtype and kind; a test that wants to change one copies it first."""
    from g4convert.demo import Family, make  # noqa: PLC0415 -- here and below: brings torch

    root = _shared(tmp_path_factory) / "checkpoints"
    root.mkdir(exist_ok=True)
    made: dict[Path, dict[str, tuple[int, int]]] = {}

    def get(family: str, *, dtype: str = "bfloat16", qat: bool = False) -> Path:
        directory = root / f"{family}-{dtype}{'-qat' * qat}"
        if directory not in made:
            with _locked(root / "lock"):
                if not directory.exists():
                    try:
                        make(Family(family), root / "unfinished", dtype=dtype, qat=qat)
                    except EnvironmentFault as fault:  # transformers 5.23.0 and assistants; not the pinned release
                        pytest.skip(fault.message)
                    (root / "unfinished").rename(directory)
            made[directory] = _state(directory)
        return directory

    yield get
    changed = [directory.name for directory, state in made.items() if _state(directory) != state]
    assert not changed, f"tests wrote into shared checkpoints: {changed}"


class Packed(Protocol):
    """Gives a quantized copy of a tiny checkpoint."""

    def __call__(self, family: str, **options: object) -> Path:
        """Make it, or find the one made before; the options are a recipe's."""
        ...


@pytest.fixture(scope="session")
def packed(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Conversions of tiny checkpoints, assistants packed; a test that wants to change one copies it first."""
    from helpers.conversions import quantized  # noqa: PLC0415 -- brings torch

    root = _shared(tmp_path_factory) / "packed"
    root.mkdir(exist_ok=True)

    def get(family: str, **options: object) -> Path:
        if "assistant" in family:
            options["assistant"] = "pack"
        out = root / "-".join([family, *(f"{key}={value}" for key, value in options.items())])
        source = checkpoints(family)
        with _locked(root / "lock"):
            if not out.exists():
                quantized(source, out, **options)
        return out

    return get


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
