"""Program that runs inside vLLM's interpreter: loads a checkpoint, reports unfilled parameters, scores prompts.

`verification.engine.vllm` starts this file as a program and sends it commands as JSON lines. The engine's interpreter
need not have g4convert or its packages, so the file imports nothing of g4convert and stays one file, whatever its
length. vLLM prints freely on stdout and stderr, so questions and replies use two pipes of their own, whose file
descriptors are the program's arguments.

    {"do": "start", "model", "dtype", "length", "top"}  ->  {"event": "started", ...} or {"event": "failed", ...}
    {"do": "score", "ids", "rows", "media"}             ->  {"event": "scored", "ids", "logprobs"} or "refused"
    end of the pipe                                     ->  the program ends

Missing tensors: vLLM does not look for them in quantized checkpoints. So each parameter and persistent buffer is
filled with a bit pattern before loading: a NaN or a number that no checkpoint has. Where the pattern is left after
loading, no tensor was loaded. Scales of the attention cache are left out: checkpoints need not have them.

float32 on a CPU: vLLM's 4-bit kernels take half precision only, and its experts also need the CPU feature AMX. So the
kernels are replaced: the words that vLLM's own loader placed are decoded once, and vLLM's unquantized products run.
"""

import sys

if __name__ == "__main__":
    sys.path = [path for path in sys.path if path != __file__.rpartition("/")[0]]  # this directory has another `html`

import base64
import copy
import json
import os
import traceback
from typing import Any

import torch

_FORMAT = "g4convert"
_FEW = 8
"""Number of int32 words below which matches with the pattern are taken for chance."""
_PATTERNS = {
    torch.bfloat16: (torch.int16, 0x7FA5),
    torch.float16: (torch.int16, 0x7DA5),
    torch.float32: (torch.int32, 0x7FA5A5A5),
    torch.int32: (torch.int32, 0x5A5A5A5B),
    torch.int64: (torch.int64, 0x5A5A5A5B5A5A5A5B),
}
_SUPPLIED = {"gemma4": {"default_output_length": 280}, "gemma4_unified": {"num_soft_tokens": 280}}
"""Keys of a vision config that vLLM's media budget needs, with the values of released configs."""

state: dict[str, Any] = {
    "phase": "start",
    "unfilled": [],
    "supplied": [],
    "mended": [],
    "sees_itself": False,
    "parameters": 0,
    "unwatched": 0,
}


def watched(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers that a checkpoint must fill, by vLLM's names."""
    found = {}
    for prefix, module in model.named_modules():
        if hasattr(module, "kv_cache"):
            continue
        buffers = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set  # noqa: SLF001 -- torch has no other way to ask
        }
        for name, tensor in {**dict(module.named_parameters(recurse=False)), **buffers}.items():
            if tensor.numel():
                found[f"{prefix}.{name}".lstrip(".")] = tensor.data
    return found


def poison(tensors: dict[str, torch.Tensor]) -> None:
    """Fill tensors with the bit pattern of their dtype, which no checkpoint has; count dtypes without a pattern."""
    for tensor in tensors.values():
        if tensor.dtype in _PATTERNS:
            bits, pattern = _PATTERNS[tensor.dtype]
            tensor.view(bits).fill_(pattern)
        else:
            state["unwatched"] += 1


def unfilled(tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the tensors in which the pattern is left, with the share of their elements that have it."""
    found = []
    for name, tensor in tensors.items():
        if tensor.dtype in _PATTERNS:
            bits, pattern = _PATTERNS[tensor.dtype]
            count = int((tensor.view(bits) == pattern).sum())
            chance = tensor.dtype is torch.int32 and count < min(_FEW, tensor.numel())
            if count and not chance:
                found.append({"name": name, "share": count / tensor.numel()})
    return found


def _watch_loading() -> None:
    """Register a loader that extends vLLM's own: it fills in the pattern before loading and looks for it after."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    class WatchedLoader(DefaultModelLoader):  # type: ignore[misc] # Any
        def __init__(self, load_config: Any) -> None:
            own = copy.copy(load_config)
            own.load_format = "safetensors"
            super().__init__(own)

        def load_model(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
            state["phase"] = "build"
            model: torch.nn.Module = super().load_model(*args, **kwargs)
            return model

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            state["phase"] = "load"
            tensors = watched(model)
            poison(tensors)
            super().load_weights(model, model_config)
            # collected again: some loaders replace a parameter's tensor
            state["unfilled"] = unfilled(watched(model))
            state["parameters"] = len(tensors) - state["unwatched"]
            if state["unfilled"]:
                raise RuntimeError(f"no tensor of the checkpoint reached {len(state['unfilled'])} parameters")
            state["phase"] = "ready"

    register_model_loader(_FORMAT)(WatchedLoader)


def decoded(words: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Decode int32 words [..., n, k / p] and scales [..., n, k / g] to weights [..., n, k] of the scales' dtype.

    A word has p codes of `bits` bits, the first code in the lowest bits; a code is stored as code + 2^(bits - 1).
    """
    codes = (words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int32)) & (2**bits - 1)
    values: torch.Tensor = (codes - 2 ** (bits - 1)).to(scale.dtype).reshape(*scale.shape, -1)
    return (values * scale[..., None]).flatten(-2)


def _decoded_rows(ids: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, _: int, bits: int) -> torch.Tensor:
    """Decode the rows `ids` [t] of a packed table to [t, k], in place of vLLM's Triton kernel."""
    return decoded(words[ids.long()], scale[ids.long()], bits)


class _DecodedLinear:
    """Replacement of a 4-bit Linear kernel: decodes the words once and multiplies by the decoded weight.

    Args:
        config: vLLM's configuration of the kernel.
    """

    def __init__(self, config: Any, **_: Any) -> None:
        self._bits = config.weight_type.size_bits

    def process_weights_after_loading(self, layer: Any) -> None:
        """Decode the layer's words, and replace them by the decoded weight."""
        weight = decoded(layer.weight_packed.data, layer.weight_scale.data, self._bits)
        del layer.weight_packed, layer.weight_scale
        layer.register_buffer("decoded", weight, persistent=False)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply `x` by the decoded weight."""
        return torch.nn.functional.linear(x, layer.decoded, bias)


def _decode_in_place_of_kernels() -> None:
    """Make vLLM use decoded weights: in torch for Linears and rows of tables, in its unquantized kernel for experts."""
    from vllm.model_executor.layers.fused_moe import UnquantizedFusedMoEMethod
    from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
    from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors_embedding as tables
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_wna16 as experts,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16 as linears

    class DecodedExperts(experts.CompressedTensorsWNA16MoEMethod):  # type: ignore[misc] # Any
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.is_marlin = False
            self.plain = UnquantizedFusedMoEMethod(self.moe)
            self.experts_cls = self.plain.experts_cls

        def process_weights_after_loading(self, layer: Any) -> None:
            for part in ("w13", "w2"):
                names = f"{part}_weight_packed", f"{part}_weight_scale", f"{part}_weight_shape"
                words, scale, _ = (getattr(layer, name).data for name in names)
                for name in names:
                    delattr(layer, name)
                weight = torch.nn.Parameter(decoded(words, scale, self.num_bits), requires_grad=False)
                layer.register_parameter(f"{part}_weight", weight)
            self.plain.process_weights_after_loading(layer)

        def get_fused_moe_quant_config(self, layer: Any) -> Any:
            return self.plain.get_fused_moe_quant_config(layer)

        def apply(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            product: torch.Tensor = self.plain.apply(*args, **kwargs)
            return product

    linears.choose_mp_linear_kernel = lambda *_, **__: _DecodedLinear
    tables._dequant_gather_triton = _decoded_rows  # noqa: SLF001 -- Triton has no CPU
    marlin = WNA16MoEBackend.MARLIN, None  # the others refuse scales by row
    experts.select_wna16_moe_backend = lambda *_, **__: marlin
    experts.check_moe_marlin_supports_config = lambda *_, **__: True
    experts.get_marlin_input_dtype = lambda *_: None
    experts.CompressedTensorsWNA16MoEMethod = DecodedExperts


def _mend_torchvision() -> None:
    """Declare torchvision's operators if its wheel was built for another torch and so cannot register them.

    Without them torchvision and vLLM's model class cannot be imported; the image processors use none of them.
    """
    try:
        import torchvision  # noqa: F401 -- tests only that it imports
    except ImportError:
        return
    except RuntimeError:
        sys.modules.pop("torchvision", None)
    else:
        return
    state["mended"].append("operators of torchvision, which is built for another torch")
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda ask: ask()  # noqa: SLF001 -- a new process would lack them again


def _mend_cpu() -> None:
    """Patch two functions that fail for pictures and sounds on a CPU.

    vLLM's media budget asks torch for the memory of an accelerator. oneDNN's products take contiguous rows only, and
    the rows of the towers are not contiguous.
    """
    from vllm import _custom_ops as operators

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch.accelerator.get_memory_info = lambda *_: (pages // 2, pages)
    product = operators.onednn_mm
    operators.onednn_mm = lambda handler, x, bias: product(handler, x.contiguous(), bias)
    state["mended"].append("towers on a CPU: the size of memory, rows with gaps")


def _supply(config: Any) -> Any:
    """Add the keys that vLLM needs and the config lacks, and note whether pictures attend to themselves."""
    vision, text = (getattr(config, f"{part}_config", None) for part in ("vision", "text"))
    state["sees_itself"] = getattr(text, "use_bidirectional_attention", None) == "vision"
    for key, value in _SUPPLIED.get(config.model_type, {}).items():
        if vision is not None and not hasattr(vision, key):
            setattr(vision, key, value)
            state["supplied"].append(f"vision_config.{key}")
    return config


class Engine:
    """vLLM with a loaded checkpoint, in this process.

    Args:
        asked: the `start` message.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        _mend_torchvision()
        import vllm
        from vllm.platforms import current_platform

        _watch_loading()
        on_cpu = current_platform.is_cpu()
        self.dtype = asked["dtype"] or ("float32" if on_cpu else "bfloat16")
        self.decodes = on_cpu and self.dtype == "float32"
        if self.decodes:
            _decode_in_place_of_kernels()
        if on_cpu:
            _mend_cpu()
        self.name = f"vLLM {vllm.__version__}"
        self.device = str(current_platform.device_type)
        self._top = asked["top"]
        self._count = 0
        self._llm = vllm.LLM(
            model=asked["model"],
            dtype=self.dtype,
            load_format=_FORMAT,
            hf_overrides=_supply,
            max_model_len=asked["length"],
            max_num_batched_tokens=max(asked["length"], 2048),
            max_num_seqs=1,
            max_logprobs=-1,
            enforce_eager=True,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            skip_mm_profiling=True,
            seed=0,
        )
        self.causal = on_cpu and state["sees_itself"]  # attention on a CPU has no mask for pictures

    def score(self, asked: dict[str, Any]) -> list[dict[int, Any]]:
        """Return vLLM's `Logprob` of the likeliest tokens and the next one, by id, for each row of a prompt."""
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        self._count += 1
        name = str(self._count)
        parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=self._top, detokenize=False)
        engine.add_request(name, self._input(asked["ids"], asked["media"], name), parameters)
        found: Any = None
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    found = output.prompt_logprobs or found
        except Exception:
            engine.abort_request([name])  # abort goes by the name given to add_request
            raise
        return [found[row + 1] for row in asked["rows"]]

    def _input(self, ids: list[int], media: list[dict[str, Any]], name: str) -> Any:
        """Return a prompt in the form in which vLLM's processors hand it on."""
        from vllm.inputs.engine import mm_input, tokens_input

        if not media:
            return tokens_input(ids)
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        items: dict[str, list[Any]] = {}
        places: dict[str, list[Any]] = {}
        for one in media:
            kind, data, fields = _processed(one)
            (item,) = MultiModalKwargsItems.from_hf_inputs(data, fields)[kind]
            items.setdefault(kind, []).append(item)
            mask = None if one["soft"] is None else torch.tensor(one["soft"])
            places.setdefault(kind, []).append(PlaceholderRange(one["offset"], one["length"], mask))
        hashes = {kind: [f"{name}.{kind}.{n}" for n in range(len(found))] for kind, found in items.items()}
        return mm_input(ids, MultiModalKwargsItems(items), hashes, places)


def _processed(one: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the kind of a picture, sound or video, its tensors under vLLM's names, and how each is batched."""
    from vllm.multimodal.inputs import MultiModalFieldConfig

    given = {key: tensor(value) for key, value in one["tensors"].items()}
    match one["kind"]:
        case "image":
            data = {"pixel_values": given["pixel_values"], "pixel_position_ids": given["image_position_ids"]}
        case "audio":
            mask = given["input_features_mask"]
            data = {"input_features_padded": given["input_features"], "input_features_mask": mask}
        case _:
            frames = torch.tensor([len(given["pixel_values_videos"])])
            flat = MultiModalFieldConfig.flat_from_sizes("video", frames)
            data = {
                "pixel_values_videos": given["pixel_values_videos"],
                "pixel_position_ids_videos": given["video_position_ids"],
                "video_frame_counts": frames,
            }
            counted = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
            return "video", data, dict(zip(data, (flat, flat, counted), strict=True))
    return one["kind"], data, dict.fromkeys(data, MultiModalFieldConfig.batched(one["kind"]))


def tensor(sent: dict[str, Any]) -> torch.Tensor:
    """Return the tensor that a message describes: dtype, shape, and bytes in base64."""
    content = bytearray(base64.b64decode(sent["bytes"]))
    return torch.frombuffer(content, dtype=getattr(torch, sent["dtype"])).reshape(sent["shape"])


def failed(error: BaseException) -> dict[str, Any]:
    """Return the message that reports an exception of vLLM."""
    return {"kind": type(error).__name__, "message": str(error), **state}


def serve(questions: Any, replies: Any) -> None:
    """Answer questions until the pipe ends or the start fails."""

    def reply(event: str, **content: Any) -> None:
        replies.write(json.dumps({"event": event, **content}) + "\n")
        replies.flush()

    engine: Engine | None = None
    for line in questions:
        asked = json.loads(line)
        try:
            if engine is None:
                engine = Engine(asked)
                reply(
                    "started",
                    name=engine.name,
                    device=engine.device,
                    dtype=engine.dtype,
                    decodes=engine.decodes,
                    causal=engine.causal,
                    **state,
                )
            else:
                rows = engine.score(asked)
                true = [row[asked["ids"][place + 1]].logprob for row, place in zip(rows, asked["rows"], strict=True)]
                ranked = [sorted(row.items(), key=lambda one: -one[1].logprob) for row in rows]
                width = min(map(len, ranked))  # a row is one longer where the next token is not among the likeliest
                ids = [[id_ for id_, _ in row[:width]] for row in ranked]
                logprobs = [[one.logprob for _, one in row[:width]] for row in ranked]
                reply("scored", ids=ids, logprobs=logprobs, true=true)
        except Exception as error:  # noqa: BLE001 -- whatever vLLM raises is reported to the parent
            traceback.print_exc()
            reply("failed" if engine is None else "refused", **failed(error))
            if engine is None:
                return


if __name__ == "__main__":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with os.fdopen(int(sys.argv[1])) as asks, os.fdopen(int(sys.argv[2]), "w") as answers:
        serve(asks, answers)
