"""Compares the values of tensors that no engine needs with those that the engines compute with in their place.

    a head that the config ties    the embedding: SGLang drops the stored head; transformers and vLLM 0.33
                                   (`model_loader/weight_tying.py`) compare the two, and keep a head that differs
    a bias that no Linear has      none: all engines drop it

Tensors are read, once, only where they are stored.
"""

from collections.abc import Iterator

from g4convert.checkpoint.contents import Contents
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.drops import all_zero, same_values
from g4convert.gemma4 import ExtraKind, droppable
from g4convert.report import Finding, Severity
from g4convert.tensors import TensorInfo

_TIED = "the values of the embedding that config.json ties it to"
_NONE = "none, or zeros"
_WAYS = (
    "`tie_word_embeddings: false` at the top level of config.json for a head of its own; else leave the tensor out, "
    "as a conversion of the original does"
)
_ADDED = "no Gemma 4 has this bias: take the model that it was made from"


def spare_values(contents: Contents, out: Checkpoint, level: str) -> Iterator[Finding]:
    """Yield a finding for a plain head beside the plain embedding that it is tied to, and for biases of Linears.

    Args:
        contents: what is stored.
        out: the checkpoint with it.
        level: first part of the findings' codes.
    """
    embedding = contents.plain(f"{contents.architecture.text_prefix}embed_tokens.weight")
    known = droppable(contents.architecture) if contents.spare else {}
    for name, form in contents.spare.items():
        extra = known.get(contents.renamed.get(name, name))
        if extra is None or not isinstance(form, TensorInfo):
            continue
        with Reader(out.path, out.weight_files) as reader:
            if extra.kind is ExtraKind.ZEROS:
                found = Finding(f"{level}.bias", Severity.PASS, name, "zeros, which all engines drop", _NONE)
                if not all_zero(out.tensors[name], reader):
                    found = Finding(
                        f"{level}.bias", Severity.FAIL, name, "a bias, which all engines drop", _NONE, _ADDED
                    )
                yield found
            elif extra.kind is ExtraKind.TIED and embedding is not None:
                found = Finding(f"{level}.tied_head", Severity.PASS, name, "the embedding's values", _TIED)
                if not same_values(out.tensors[name], out.tensors[embedding.name], reader):
                    differs = f"differs from {embedding.name}: SGLang drops it, vLLM and transformers compute with it"
                    found = Finding(f"{level}.tied_head", Severity.FAIL, name, differs, _TIED, _WAYS)
                yield found
