"""vLLM's own model classes, quantization config and loader, built without torch.

`CompressedTensorsConfig.get_quant_method` is asked for each Linear with the prefix that the model class gives it, as
`LinearBase` does; `AutoWeightsLoader` hands out the tensors.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from real import Loose, Real, base_class, canonical_tree, grouped, linears, whole_config, without_schemes
from skeleton import Module, Parameter, ours

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from helpers.engine_cases import Case

    from g4convert.gemma4 import Architecture

__all__ = ["Vllm"]

_CT = "model_executor.layers.quantization.compressed_tensors"
_REAL = (
    *(f"model_executor.models.{name}" for name in ("gemma4", "gemma4_mm", "gemma4_unified", "gemma4_mtp")),
    *(f"model_executor.models.{name}" for name in ("utils", "interfaces", "interfaces_base", "transformers.utils")),
    f"{_CT}.compressed_tensors",
    f"{_CT}.utils",
    f"{_CT}.compressed_tensors_moe.compressed_tensors_moe",
    "model_executor.layers.quantization.utils.config_utils",
    "model_executor.layers.quantization.base_config",
    "model_executor.model_loader.utils",
)


class VllmConfig(Loose):
    """The part of vLLM's config that models read."""

    def with_hf_config(self, hf_config: object, architectures: list[str]) -> VllmConfig:
        """Return the config of an inner model."""
        model = Loose(**{**self.model_config.__dict__, "hf_config": hf_config, "architectures": architectures})
        return VllmConfig(**{**self.__dict__, "model_config": model})

    @staticmethod
    def get_quantization_config(model_config: Any, _: object) -> object:  # noqa: ANN401
        """A drafter's own, read anew."""
        return model_config.fresh_quant_config()


class Vllm(Real):
    """One unpacked wheel.

    Args:
        root: the directory above `vllm`.
    """

    def __init__(self, root: Path) -> None:
        self.base = base_class()
        linear, every = linears(self.base)
        named = (root / "vllm/model_executor/layers/fused_moe/routed_experts.py").exists()
        self.experts = self._experts_class("RoutedExperts" if named else "FusedMoE")
        embedding = type("VocabParallelEmbedding", (self.base,), {})
        head = type("ParallelLMHead", (embedding,), {"tie_weights": lambda self, _: self})
        args = type(
            "QuantizationArgs",
            (),
            {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "actorder": None},
        )
        self.args = args
        layers = "vllm.model_executor.layers"
        group = SimpleNamespace(rank_in_group=0, world_size=1, is_first_rank=True, is_last_rank=True)
        parallel = {
            "get_pp_group": lambda: group,
            "get_tensor_model_parallel_rank": lambda: 0,
            "get_tensor_model_parallel_world_size": lambda: 1,
            "get_pp_indices": lambda count, *_: (0, count),
        }
        unquantized = {
            name: type(name, (), {"__init__": lambda *_: None})
            for name in ("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod")
        }
        moe = {
            "GateLinear": type("GateLinear", (every["ReplicatedLinear"],), {}),
            **dict.fromkeys(("RoutedExperts", "FusedMoE", "FusedMoEFactory"), self.experts),
            "UnquantizedFusedMoEMethod": unquantized["UnquantizedFusedMoEMethod"],
            "fused_moe_make_expert_params_mapping": _expert_mapping,
        }
        given = {
            f"{layers}.linear": {"LinearBase": linear, **every, **unquantized},
            f"{layers}.vocab_parallel_embedding": {"VocabParallelEmbedding": embedding, "ParallelLMHead": head},
            f"{layers}.fused_moe": moe,
            f"{layers}.quantization.compressed_tensors.transform.linear": {
                "get_linear_transform_schemes": lambda *_: ({}, {})
            },
            f"{layers}.quantization.compressed_tensors.schemes.compressed_tensors_wNa16": {
                "WNA16_SUPPORTED_BITS": (4, 8)
            },
            "vllm.config": {"VllmConfig": VllmConfig},
            "vllm.config.utils": {"getattr_iter": lambda one, names: next(getattr(one, name) for name in names)},
            "vllm.distributed": parallel,
            "vllm.distributed.parallel_state": parallel,
            "vllm.distributed.utils": parallel,
            "vllm.model_executor.offloader": {"get_offloader": lambda: SimpleNamespace(wrap_modules=list)},
            "vllm.model_executor.model_loader.weight_utils": {
                "maybe_remap_kv_scale_name": lambda name, _: name,
                "default_weight_loader": lambda param, weight: param.weight_loader(param, weight),
            },
            "vllm.model_executor.models.expert_substitution": {"as_expert_substitution_model": lambda one, _: one},
            "transformers": {"AutoModel": SimpleNamespace(from_config=canonical_tree)},
            "compressed_tensors": {"CompressionFormat": _formats()},
            "compressed_tensors.config": {"CompressionFormat": _formats()},
            "compressed_tensors.quantization": {
                "QuantizationArgs": args,
                "QuantizationType": SimpleNamespace(INT="int", FLOAT="float"),
                "QuantizationStrategy": SimpleNamespace(GROUP="group", BLOCK="block", CHANNEL="channel", TENSOR="t"),
            },
        }
        self.module = ours(root, "vllm", [name for name in _REAL if (root / _file(name)).exists()], given)
        self._patch()

    def _experts_class(self, name: str) -> type[Module]:
        base = self.base

        def make_parameters(self: Any) -> None:  # noqa: ANN401
            parts = ("_packed", "_scale", "_shape") if self.form == "packed" else ("",)
            for one in (f"{tensor}_weight{part}" for tensor in ("w13", "w2") for part in parts):
                setattr(self, one, Parameter())

        def load_weights(self: Any, weights: Iterable[tuple[str, Any]]) -> set[str]:  # noqa: ANN401
            for _, weight in weights:
                next(iter(self._parameters.values())).loaded.append(str(weight))
            return set()

        names = {f"ckpt_{part}_proj_name": f"{part}_proj" for part in ("gate", "up", "down")}
        members = {"make_parameters": make_parameters, "load_weights": load_weights, "moe_config": None, **names}
        return type(name, (base,), members)

    def _patch(self) -> None:
        """Join what the stand-ins keep apart: the experts' method, schemes, contexts, the inner model."""
        config = self.module(f"{_CT}.compressed_tensors")
        config.CompressedTensorsMoEMethod = self.module(
            f"{_CT}.compressed_tensors_moe.compressed_tensors_moe"
        ).CompressedTensorsMoEMethod
        self.quant_config_class = without_schemes(config.CompressedTensorsConfig)
        for name in ("gemma4_mm", "gemma4_unified"):
            models = self.module(f"model_executor.models.{name}")
            models.init_vllm_registered_model = self._inner
            for one in vars(models).values():
                if isinstance(one, type) and hasattr(one, "_mark_tower_model"):
                    one._mark_tower_model = one._mark_language_model = lambda *_, **__: nullcontext()  # noqa: SLF001 -- theirs

    def _inner(self, *, vllm_config: Any, prefix: str, hf_config: object, architectures: list[str]) -> Module:  # noqa: ANN401
        """`initialize_model` for the decoder of a multimodal model."""
        inner = vllm_config.with_hf_config(hf_config, architectures)
        return self._initialized(self.module("model_executor.models.gemma4").Gemma4ForCausalLM, inner, prefix)

    def _initialized(self, model_class: Any, vllm_config: Any, prefix: str = "") -> Module:  # noqa: ANN401
        if vllm_config.quant_config is not None:
            self.module("model_executor.model_loader.utils").configure_quant_config(
                vllm_config.quant_config, model_class
            )
        model: Module = model_class(vllm_config=vllm_config, prefix=prefix)
        return model

    def _model(self, case: Case) -> Module:
        def fresh() -> object:
            return self.quant_config_class(
                target_scheme_map=grouped(case, self.args),
                ignore=list(case.ignore),
                quant_format="pack-quantized",
            )

        hf_config = whole_config(case.config, case.architecture)
        draft = Loose(hf_config=hf_config, fresh_quant_config=fresh)
        model_config = Loose(hf_config=hf_config, quantization="compressed-tensors")
        vllm_config = VllmConfig(
            quant_config=fresh(),
            model_config=model_config,
            lora_config=None,
            speculative_config=SimpleNamespace(draft_model_config=draft),
        )
        return self._initialized(self._class(case.architecture), vllm_config)

    def _class(self, architecture: Architecture) -> Any:  # noqa: ANN401
        if architecture.is_assistant:
            return self.module("model_executor.models.gemma4_mtp").Gemma4MTP
        if not architecture.is_composite:
            return self.module("model_executor.models.gemma4").Gemma4ForCausalLM
        if architecture.is_unified:
            return self.module("model_executor.models.gemma4_unified").Gemma4UnifiedForConditionalGeneration
        return self.module("model_executor.models.gemma4_mm").Gemma4ForConditionalGeneration


def _file(name: str) -> str:
    return f"vllm/{name.replace('.', '/')}.py"


def _formats() -> object:
    return SimpleNamespace(
        pack_quantized=SimpleNamespace(value="pack-quantized"),
        **{
            name: SimpleNamespace(value=name)
            for name in ("naive_quantized", "int_quantized", "float_quantized", "nvfp4_pack_quantized")
        },
    )


def _expert_mapping(*_: object, num_experts: int = 0, **__: object) -> list[tuple[str, str, int, str]]:
    """The names of 0.23's `FusedMoE.make_expert_params_mapping`."""
    shards = (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
    return [
        ("experts.w2_" if part == "down_proj" else "experts.w13_", f"experts.{e}.{part}.", e, shard)
        for e in range(num_experts)
        for shard, part in shards
    ]
