"""Names of tensors that an engine reads beside those that transformers writes.

A loader maps the prefixes of names; SGLang's knows the parts of merged Linears, too. A tensor of another name is
unknown to it, and the module that needs the tensor stays empty. `make test-engines` compares each answer with the
loaders of vLLM and SGLang; the tests load every spelling with transformers.
"""

from collections.abc import Collection
from dataclasses import dataclass

from g4convert.gemma4 import Architecture
from g4convert.gemma4.dialects import body_of, prefix_of, spell


@dataclass(frozen=True, slots=True)
class Spellings:
    """Prefixes that a loader takes, by part of the model, and the habits of spelling that it shares.

    Args:
        decoder: prefixes of the decoder of a multimodal model.
        media: prefixes of its towers and embedders.
        head: prefixes of its output head.
        text: prefixes of the decoder of a text-only model.
        text_head: prefixes of the head of a text-only model.
        drafter: prefixes of the decoder of an MTP assistant.
        habits: names of dialect rules whose foreign names it knows.
        unified: names of further dialect rules, whose foreign names it knows in a unified model.
    """

    decoder: Collection[str]
    media: Collection[str]
    head: Collection[str]
    text: Collection[str]
    drafter: Collection[str]
    text_head: Collection[str] = ("",)
    habits: Collection[str] = ()
    unified: Collection[str] = ()

    def has(self, source: str, canonical: str, architecture: Architecture) -> bool:
        """Return whether the engine reads a tensor by the name under which it is stored."""
        spelling = spell(source, {body_of(canonical)})
        known = {*self.habits, *(self.unified if architecture.is_unified else ())}
        if any(rule.name not in known for rule in spelling.rules):
            return False
        return spelling.prefix in self._prefixes(canonical, architecture)

    def _prefixes(self, canonical: str, architecture: Architecture) -> Collection[str]:
        own = prefix_of(canonical)
        if architecture.is_composite:
            if not own:
                return self.head
            return self.media if architecture.decoder_path(canonical) is None else self.decoder
        if own:
            return self.drafter if architecture.is_assistant else self.text
        return ("",) if architecture.is_assistant else self.text_head
