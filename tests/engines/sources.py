"""Lines of the engines' sources that `g4convert.engines.needs` relies on, and that no model class shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["unlike"]


class Line(NamedTuple):
    """Code in a file of a wheel, with single spaces; `there` is False for code that must not be there."""

    file: str
    code: str
    there: bool = True


_VLLM = "vllm/model_executor/models"
_SGLANG = "sglang/srt"
_LINES: Mapping[str, tuple[Line, ...]] = {
    "vLLM 0.33": (
        Line(f"{_VLLM}/registry.py", '"Gemma4ForCausalLM": ("gemma4", "Gemma4ForCausalLM")'),
        Line(f"{_VLLM}/registry.py", "Gemma4UnifiedForCausalLM", there=False),
        Line(f"{_VLLM}/gemma4_mm.py", "self.vision_tower = AutoModel.from_config(config=config.vision_config)"),
        Line(f"{_VLLM}/gemma4_mm.py", "tokens_per_image = config.vision_config.default_output_length"),
        Line(f"{_VLLM}/gemma4_unified.py", "if config.vision_config is None: raise ValueError("),
        Line(f"{_VLLM}/gemma4_unified.py", "tokens_per_image = config.vision_config.num_soft_tokens"),
    ),
    "SGLang 0.5.23": (
        Line(f"{_SGLANG}/configs/model_config.py", 'self.head_dim = getattr(self.hf_text_config, "head_dim", None)'),
        Line(
            f"{_SGLANG}/utils/hf_transformers/config.py",
            '_GEMMA4_MODEL_TYPES = ( "gemma4", "gemma4_assistant", "gemma4_unified", "gemma4_unified_assistant", '
            '"diffusion_gemma", "embedding_gemma2", )',
        ),
        Line(f"{_SGLANG}/utils/hf_transformers/common.py", "class _Gemma4UnifiedConfigAlias(_HFGemma4Config):"),
        Line(f"{_SGLANG}/models/gemma4_mm.py", "self.vision_tower = Gemma4VisionEncoder( config=config.vision_config,"),
        Line(f"{_SGLANG}/models/gemma4_vision.py", "self.patch_size = config.patch_size"),
        Line(f"{_SGLANG}/models/gemma4_causal.py", "EntryClass = Gemma4ForCausalLM"),
        Line(f"{_SGLANG}/models/gemma4_unified.py", "EntryClass = Gemma4UnifiedForConditionalGeneration"),
        Line(f"{_SGLANG}/models/gemma4_unified.py", "patch_dim = config.model_patch_size**2 * 3"),
        Line(f"{_SGLANG}/models/gemma4_unified.py", 'if getattr(config, "vision_config", None) is not None'),
    ),
}
"""Label of a contract -> lines of its wheel."""


def unlike(label: str, root: Path) -> Iterator[str]:
    """Yield each line that a wheel has and should not have, or the other way round.

    Args:
        label: label of the contract.
        root: the directory that the wheel was unpacked into.
    """
    for file, code, there in _LINES.get(label, ()):
        text = " ".join((root / file).read_text(encoding="utf-8").split())
        if (code in text) is not there:
            yield f"{file}: {'no' if there else 'has'} {code}"
