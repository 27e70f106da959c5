"""Compares a stored head with the embedding that the config ties it to: engines differ in which they take.

vLLM and SGLang drop the stored head; transformers compares the two, and keeps the head of its own if they differ. Both
tensors are read, once, only where both are stored.
"""

from collections.abc import Iterator

from g4convert.checkpoint.reader import Reader
from g4convert.conversion.drops import same_values
from g4convert.engines.stored import StoredCheckpoint
from g4convert.gemma4 import ExtraKind, droppable
from g4convert.report import Finding, Severity
from g4convert.tensors import TensorInfo

__all__ = ["tied_head"]

_CODE = "engines.tied_head"
_EXPECTED = "the values of the embedding that config.json ties it to"
_WAYS = (
    "`tie_word_embeddings: false` at the top level of config.json for a head of its own; else leave the tensor out, "
    "as a conversion of the original does"
)


def tied_head(stored: StoredCheckpoint) -> Iterator[Finding]:
    """Yield a finding for a plain head stored beside a plain embedding that the config ties it to."""
    contents, out = stored.contents, stored.checkpoint
    embedding = contents.plain(f"{contents.architecture.text_prefix}embed_tokens.weight")
    known = droppable(contents.architecture)
    for name, form in contents.spare.items():
        extra = known.get(contents.renamed.get(name, name))
        if extra is None or extra.kind is not ExtraKind.TIED or embedding is None or not isinstance(form, TensorInfo):
            continue
        with Reader(out.path, out.weight_files) as reader:
            if same_values(out.tensors[name], out.tensors[embedding.name], reader):
                yield Finding(_CODE, Severity.PASS, name, "the embedding's values", _EXPECTED)
                continue
        differs = f"differs from {embedding.name}: vLLM and SGLang drop it, transformers computes with it"
        yield Finding(_CODE, Severity.FAIL, name, differs, _EXPECTED, _WAYS)
