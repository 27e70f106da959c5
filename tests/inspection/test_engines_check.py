"""`check`: what engines would make of anybody's checkpoint, and the status that follows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from helpers import sparse
from helpers.configs import copied, exit_code, good, judged, loads
from helpers.headers import planned
from helpers.program import g4convert
from helpers.released_configs import stored

from g4convert.engines.verdicts import Loads, Verdict, verdicts
from g4convert.errors import InputError, UsageError
from g4convert.gemma4 import Architecture
from g4convert.inspection.engines import CheckRequest
from g4convert.inspection.fix import fix
from g4convert.planning.weights import make_planned_weights
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.program import Program

__all__ = ["copied", "g4convert", "good"]


def test_what_was_asked_for_fails_and_the_rest_warns(good: Callable[[str], Path]) -> None:
    directory = good("26B-A4B")
    assert loads(judged(directory)) == {"transformers": Loads.NO, "vllm": Loads.YES, "sglang": Loads.NO}
    codes = {
        (): 0,
        ("vllm",): 0,
        ("sglang",): 1,
        ("vllm", "transformers"): 1,
    }
    assert {engines: exit_code(judged(directory, *engines)) for engines in codes} == codes
    assert judged(directory).report.verdict is Severity.WARN
    assert [exit_code(judged(directory, "vllm", tps=(tp,))) for tp in (1, 2, 4)] == [0, 0, 1]
    assert [exit_code(judged(directory, tps=(tp,))) for tp in (2, 4)] == [0, 1]  # at 4, no engine is left


def test_a_plain_checkpoint_is_judged_too(tmp_path: Path) -> None:
    config = sparse.little("26B-A4B")
    infos = stored(Architecture.from_config(config))
    directory = sparse.write(tmp_path / "plain", config, infos.values(), {})
    found = judged(directory)
    assert exit_code(found) == 0
    assert set(loads(found).values()) == {Loads.YES}
    assert fix(directory) is None


def test_check_agrees_with_the_plan_that_wrote_it(good: Callable[[str], Path]) -> None:
    for size in ("E2B", "12B", "26B-A4B", "31B"):
        plan = planned(sparse.little(size))
        found, wanted = judged(good(size)).verdicts, verdicts(make_planned_weights(plan))
        assert [without_remedies(one) for one in found] == [without_remedies(one) for one in wanted]


def without_remedies(verdict: Verdict) -> Verdict:
    """`check` has other remedies than `plan`: nothing can be left out of what is written."""
    problems = tuple(replace(one, ways=()) for one in verdict.problems)
    return replace(verdict, problems=problems, remedies=())


def test_remedies_of_another_command_say_so(good: Callable[[str], Path]) -> None:
    found = judged(good("26B-A4B"))
    pieces = [one.remedy for one in found.report.findings]
    texts = ((*map(str, one.remedies), *(remark.remedy for remark in one.told)) for one in found.verdicts)
    pieces += [text for several in texts for text in several]
    options = [text for text in pieces if "`--pack" in text or "`--group-size" in text]
    assert options
    assert all("quantize again from the source with `--" in text for text in options), options


def test_files_that_cannot_be_read_are_an_error(
    g4convert: Program, copied: Callable[..., Path], tmp_path: Path
) -> None:
    directory = copied("31B")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError):
        judged(directory)
    (tmp_path / "bare").mkdir()
    for path in (directory, tmp_path / "bare"):
        ran = g4convert("check", path)
        assert (ran.status, ran.out) == (3, "")
        assert ran.err.startswith("error:")


def test_no_directory_no_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        judged(tmp_path / "none")
    with pytest.raises(UsageError, match="transformers, vllm, sglang"):
        CheckRequest.of(tmp_path, ["llama.cpp"])


@pytest.mark.wide
def test_check_imports_nothing_heavy(good: Callable[[str], Path]) -> None:
    code = (
        "import sys\nfrom g4convert.cli.app import main\n"
        "try: main(sys.argv[1:])\nfinally: assert not {'torch', 'numpy', 'numba'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, "check", str(good("31B")), "-q"]
    assert subprocess.run(command, check=False).returncode == 0
