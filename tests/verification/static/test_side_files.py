"""Files beside the weights that the source lacks or has otherwise: what engines would do by them decides."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Checkpoints, Packed

from g4convert.checkpoint.directory import Checkpoint
from g4convert.report import Finding, Severity
from g4convert.verification.static.side_files import side_files

TOKENS = {
    "bos_token": {"content": "<bos>", "lstrip": False},
    "eos_token": "<eos>",
    "additional_special_tokens": ["<mask>"],
}
FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO


class Pair(NamedTuple):
    """A source and an output of it, both copies."""

    source: Path
    out: Path

    def finding(self, name: str) -> Finding | None:
        """Return the finding on a file."""
        found = side_files(Checkpoint.open(self.out), Checkpoint.open(self.source))
        return next((one for one in found if one.subject == name), None)


@pytest.fixture
def pair(checkpoints: Checkpoints, packed: Packed, tmp_path: Path) -> Pair:
    return Pair(
        Path(shutil.copytree(checkpoints("dense"), tmp_path / "source")),
        Path(shutil.copytree(packed("dense"), tmp_path / "out")),
    )


def written_config(out: Path) -> dict[str, object]:
    """The generation config that transformers derives of a model's config."""
    text = json.loads((out / "config.json").read_text())["text_config"]
    tokens = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {"_from_model_config": True, "transformers_version": "5.22.2", "use_cache": True, **tokens}


def test_special_tokens_that_are_those_of_the_tokenizer_are_noted(pair: Pair) -> None:
    (pair.out / "special_tokens_map.json").write_text(json.dumps(TOKENS))
    found = pair.finding("special_tokens_map.json")
    assert found is not None
    assert (found.severity, found.found) == (INFO, "not in the source")


def test_other_special_tokens_fail_and_are_named(pair: Pair) -> None:
    (pair.out / "special_tokens_map.json").write_text(json.dumps(TOKENS | {"eos_token": "<pad>"}))
    found = pair.finding("special_tokens_map.json")
    assert found is not None
    assert found.severity is FAIL
    assert found.found.startswith("added: other tokens than in tokenizer_config.json")
    assert found.found.endswith(": eos_token")


@pytest.mark.parametrize(
    ("more", "severity", "named"), [({}, INFO, ""), ({"temperature": 0.2, "top_k": 64}, FAIL, ": temperature, top_k")]
)
def test_settings_of_generation_beyond_the_config_fail(
    more: dict[str, float], severity: Severity, named: str, pair: Pair
) -> None:
    (pair.source / "generation_config.json").unlink()
    (pair.out / "generation_config.json").write_text(json.dumps(written_config(pair.out) | more))
    found = pair.finding("generation_config.json")
    assert found is not None
    assert found.severity is severity
    assert found.found.endswith(named)


@pytest.mark.parametrize(("where", "severity"), [("none", WARN), ("same", INFO), ("other", FAIL)])
def test_a_template_is_judged_by_that_of_the_tokenizer(where: str, severity: Severity, pair: Pair) -> None:
    template = (pair.source / "chat_template.jinja").read_text()
    (pair.source / "chat_template.jinja").unlink()
    for path in (pair.source, pair.out):
        config = json.loads((path / "tokenizer_config.json").read_text())
        stated = {} if where == "none" else {"chat_template": template if where == "same" else "{{ messages }}"}
        (path / "tokenizer_config.json").write_text(json.dumps(config | stated))
    found = pair.finding("chat_template.jinja")
    assert found is not None
    assert found.severity is severity


def test_a_tokenizer_that_the_source_lacks_is_warned_of(pair: Pair) -> None:
    (pair.source / "tokenizer.json").unlink()
    found = pair.finding("tokenizer.json")
    assert found is not None
    assert (found.severity, found.found) == (WARN, "added: engines read it, and the source has none")


def test_the_keys_of_json_that_differ_are_named(pair: Pair) -> None:
    path = pair.out / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_local": True, "padding_side": "right"}))
    found = pair.finding("tokenizer_config.json")
    assert found is not None
    assert (found.severity, found.found) == (FAIL, "other values of padding_side, is_local")


def test_a_template_with_other_line_ends_is_said_to_have_those(pair: Pair) -> None:
    path = pair.out / "chat_template.jinja"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\n")
    found = pair.finding("chat_template.jinja")
    assert found is not None
    assert (found.severity, found.found) == (FAIL, "the same words with other spaces or line ends")
