"""SGLang's own model classes, quantization config and `load_weights`, built without torch."""

from __future__ import annotations

import ast
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from real import Real, base_class, grouped, linears, whole_config, without_schemes
from skeleton import Anything, Module, ModuleList, Parameter, ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.engine_cases import Case

    from g4convert.gemma4 import Architecture

__all__ = ["Sglang"]

_CT = "srt.layers.quantization.compressed_tensors"
_MODELS = ("causal", "mm", "unified", "mtp", "vision", "audio")
_REAL = (
    *(f"srt.models.gemma4_{name}" for name in _MODELS),
    "srt.models.gemma3_causal",
    "srt.layers.clippable_linear",
    f"{_CT}.compressed_tensors",
    f"{_CT}.utils",
)


class Sglang(Real):
    """One unpacked wheel.

    Args:
        root: the directory above `sglang`.
    """

    def __init__(self, root: Path) -> None:
        self.base = base_class()
        linear, every = linears(self.base)
        source = root / "sglang/srt"
        experts = self._experts_class(source / "layers/moe/fused_moe_triton/layer.py")
        head = type("ParallelLMHead", (self.base,), {})
        table = type("VocabParallelEmbedding", (Module,), {"__init__": _weighted})
        unquantized = {
            name: type(name, (), {"__init__": lambda *_: None})
            for name in ("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod")
        }
        layers, group = "sglang.srt.layers", SimpleNamespace(world_size=1, is_first_rank=True, is_last_rank=True)
        parallel = SimpleNamespace(
            tp_size=1, attn_tp_size=1, tp_rank=0, attn_tp_rank=0, pp_group=group, pp_rank=0, pp_size=1
        )
        args = type("QuantizationArgs", (), {"type": "int", "num_bits": 4, "block_structure": None})
        self.args = args
        common = {
            "add_prefix": _function(source / "utils/common.py", "add_prefix"),
            "make_pp_layers": _layers(tuples=True),
        }
        common |= {"make_layers": _layers(tuples=False)}
        given = {
            f"{layers}.linear": {"LinearBase": linear, **every},
            f"{layers}.vocab_parallel_embedding": {"ParallelLMHead": head, "VocabParallelEmbedding": table},
            f"{layers}.moe.fused_moe_triton": {"FusedMoE": experts},
            f"{layers}.moe.fused_moe_triton.layer": {"FusedMoE": experts},
            f"{layers}.moe.ep_moe.layer": {"get_moe_impl_class": lambda _: experts},
            f"{layers}.quantization.unquant": unquantized,
            f"{layers}.quantization.base_config": {"QuantizationConfig": type("QuantizationConfig", (), {})},
            f"{layers}.layer_boundary": {"append_stages": lambda *_: (Anything(), Anything())},
            "sglang.srt.utils": common,
            "sglang.srt.runtime_context": {"get_parallel": lambda: parallel},
            "sglang.srt.model_loader.weight_utils": {
                "maybe_remap_kv_scale_name": lambda name, _: name,
                "default_weight_loader": lambda param, weight: param.weight_loader(param, weight),
            },
            "transformers": {"PreTrainedModel": Module},
            "compressed_tensors.quantization": {"QuantizationArgs": args},
        }
        self.module = ours(root, "sglang", _REAL, given)
        logging.disable(logging.WARNING)  # names what is missing after each tensor
        for name in ("gemma3_causal", "gemma4_causal"):  # an embedding is one without a config
            models = self.module(f"srt.models.{name}")
            embeddings = {one for one in vars(models) if one.endswith("ScaledWordEmbedding")}
            for one in embeddings:
                setattr(models, one, type("Gemma4TextScaledWordEmbedding", (Module,), {"__init__": _weighted}))
        quantization = self.module(f"{_CT}.compressed_tensors")
        quantization.logger = Anything()  # theirs has methods of its own
        config = quantization.CompressedTensorsConfig
        self.config_class = without_schemes(config, supports_cutlass_24=lambda *_, **__: False)

    def _experts_class(self, source: Path) -> type[Module]:
        def make_parameters(self: Any) -> None:  # noqa: ANN401
            parts = ("_packed", "_scale", "_shape") if self.form == "packed" else ("",)
            for name in (f"{tensor}_weight{part}" for tensor in ("w13", "w2") for part in parts):
                setattr(self, name, Parameter())

        mapping = classmethod(_function(source, "make_expert_params_mapping"))
        members = {"make_parameters": make_parameters, "make_expert_params_mapping": mapping, "runner_backend": None}
        return type("FusedMoE", (self.base,), members)

    def _model(self, case: Case) -> Module:
        model_class = self._class(case.architecture)
        quant_config = self.config_class(
            target_scheme_map=grouped(case, self.args),
            ignore=list(case.ignore),
            quant_format="pack-quantized",
            sparsity_scheme_map={},
            sparsity_ignore_list=[],
            packed_modules_mapping=dict(getattr(model_class, "packed_modules_mapping", {})),
        )
        model: Module = model_class(config=whole_config(case.config, case.architecture), quant_config=quant_config)
        return model

    def _class(self, architecture: Architecture) -> Any:  # noqa: ANN401
        if architecture.is_assistant:
            return self.module("srt.models.gemma4_mtp").Gemma4AssistantForCausalLM
        if not architecture.is_composite:
            return self.module("srt.models.gemma4_causal").Gemma4ForCausalLM
        if architecture.is_unified:
            return self.module("srt.models.gemma4_unified").Gemma4UnifiedForConditionalGeneration
        return self.module("srt.models.gemma4_mm").Gemma4ForConditionalGeneration


def _weighted(self: Any, *_: object, **__: object) -> None:  # noqa: ANN401
    self.weight = Parameter()


def _function(path: Path, name: str) -> Callable[..., Any]:
    """One function of a file, without the rest of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == name)
    node.decorator_list, node.returns = [], None
    for argument in node.args.args:
        argument.annotation = None
    space: dict[str, Any] = {}
    exec(compile(ast.Module([node], []), str(path), "exec"), space)  # noqa: S102 -- the engine's own code is what is run
    found: Callable[..., Any] = space[name]
    return found


def _layers(*, tuples: bool) -> Callable[..., Any]:
    """`make_layers` of one rank: prefix and number, joined as `add_prefix` does."""

    def make(count: int, layer: Callable[..., Any], prefix: str = "", **_: object) -> Any:  # noqa: ANN401
        made = ModuleList(layer(idx=n, prefix=f"{prefix}.{n}" if prefix else str(n)) for n in range(count))
        return (made, 0, count) if tuples else made

    return make
