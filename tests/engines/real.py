"""Questions to an engine's real code, and stand-ins for its layers and its configs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.engine_cases import Row
from skeleton import Anything, Linear, Module, Parameter

from g4convert.gemma4 import expected_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from helpers.engine_cases import Case

    from g4convert.gemma4 import Architecture

__all__ = [
    "Loose",
    "Real",
    "Tensor",
    "base_class",
    "canonical_tree",
    "grouped",
    "linears",
    "whole_config",
    "without_schemes",
]

_LINEARS = (
    "ColumnParallelLinear",
    "MergedColumnParallelLinear",
    "QKVParallelLinear",
    "ReplicatedLinear",
    "RowParallelLinear",
)
_TABLES = {"VocabParallelEmbedding", "ParallelLMHead"}


class Loose(Anything):
    """An object with some attributes; the others are anything."""

    def __init__(self, **known: object) -> None:
        self.__dict__.update(known)

    def __bool__(self) -> bool:
        return True


class Strict:
    """A config of transformers: an attribute that is not there is an error."""

    def __init__(self, **known: object) -> None:
        self.__dict__.update(known)


class Tensor(str):
    """A stored tensor that is only its name."""

    __slots__ = ("shard_id",)
    dtype = None
    shape = (2, 2)

    def __getitem__(self, _: object) -> Tensor:
        return self

    def detach(self) -> Tensor:
        """Return itself."""
        return Tensor(self)

    def clone(self) -> Tensor:
        """Return itself."""
        return Tensor(self)

    def dim(self) -> int:
        """Return the number of dimensions of a Linear's weight."""
        return 2


def decoder_config(config: Mapping[str, Any], architecture: Architecture) -> Strict:
    """Make the text config that the engines' decoders read, by the numbers of an architecture."""
    text = architecture.text
    layers = [Strict(head_dim=one.head_dim, num_key_value_heads=one.kv_heads) for one in text.layers]
    known = {
        "rms_norm_eps": 1e-6,
        "rope_parameters": {},
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": text.attention_bias,
        "max_position_embeddings": 128,
        "sliding_window": 16,
        "tie_word_embeddings": architecture.tied_embeddings,
        "num_kv_shared_layers": sum(one.kv_shared for one in text.layers),
        "attention_k_eq_v": any(one.k_eq_v for one in text.layers),
        "layer_types": ["full_attention" if one.full else "sliding_attention" for one in text.layers],
        "hidden_size_per_layer_input": text.ple.width if text.ple else 0,
        "global_head_dim": max(one.head_dim for one in text.layers),
    }
    wanted = {**config, **known, "per_layer_config": layers}
    wanted["num_experts"] = text.experts.count if text.experts else None
    wanted["enable_moe_block"] = text.experts is not None
    return Strict(**wanted)


def whole_config(config: Mapping[str, Any], architecture: Architecture) -> Strict:
    """A model's config with its parts."""
    if not (architecture.is_composite or architecture.is_assistant):
        return decoder_config(config, architecture)
    parts = {key: Part(architecture, key, config.get(key)) for key in ("vision_config", "audio_config")}
    rest = {key: value for key, value in config.items() if not key.endswith("_config")}
    text = decoder_config(config["text_config"], architecture)
    return Strict(**rest, **{key: one if config.get(key) else None for key, one in parts.items()}, text_config=text)


class Part(Strict):
    """The config of a tower, which knows the Linears it stands for."""

    def __init__(self, architecture: Architecture, key: str, values: Mapping[str, Any] | None) -> None:
        tower = f"model.{key.removesuffix('_config')}_tower."
        modules = [name.removesuffix(".weight") for name, what in expected_weights(architecture).items() if what.linear]
        self.linears = [name.removeprefix(tower) for name in modules if name.startswith(tower)]
        known = {"rms_norm_eps": 1e-6, "attention_bias": False, "rope_parameters": Loose()}
        super().__init__(**{**known, **(values or {}), "hidden_activation": "gelu_pytorch_tanh"})

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return 64  # a size; none of them matters


def canonical_tree(config: Part) -> Module:
    """A tower as transformers builds it, as far as its Linears go."""
    top = Module()
    for path in config.linears:
        *owners, last = path.split(".")
        place = top
        for owner in owners:
            if owner not in dict(place.named_children()):
                setattr(place, owner, Module())
            place = getattr(place, owner)
        setattr(place, last, Linear())
    return top


def linears(base: type[Module]) -> tuple[type[Module], dict[str, type[Module]]]:
    """The class that all Linears of an engine derive from, and those, by name."""
    linear = type("LinearBase", (base,), {})
    return linear, {name: type(name, (linear,), {}) for name in _LINEARS}


def without_schemes(config: type, **kept: object) -> type:
    """A quantization config's class that knows W4A16 and no other scheme.

    Args:
        config: the engine's.
        kept: members in place of its own.
    """
    members: dict[str, object] = {
        "_get_scheme_from_parts": lambda *_, **__: Anything(),
        "_check_scheme_supported": lambda *_, **__: True,
        "_is_wNa16_group_channel": lambda *_: True,
        **kept,
    }

    def get_scheme_dict(self: Any, *args: object, **named: object) -> Any:  # noqa: ANN401
        found = config.get_scheme_dict(self, *args, **named)  # type: ignore[attr-defined]
        self.taken = found["weights"].group if found else 0
        return found

    members.setdefault("get_scheme_dict", get_scheme_dict)
    others = {name: lambda *_, **__: False for name in vars(config) if name.startswith("_is_") and name not in members}
    return type("Config", (config,), {**members, **others})


def grouped(case: Case, args: Callable[[], Any]) -> dict[str, dict[str, object]]:
    """The scheme of each target, as engines make it of config groups; `group` says which one it is of."""
    weights = {number: args() for number in set(case.places.values())}
    for number, one in weights.items():
        one.group = number
    rest = {"input_activations": None, "output_activations": None, "format": "pack-quantized"}
    return {target: {"weights": weights[number], **rest} for target, number in case.places.items()}


def _decide(layer: Any, quant_config: Any, prefix: str) -> str:  # noqa: ANN401
    try:
        method = quant_config.get_quant_method(layer, prefix)
    except ValueError:
        return "stops"
    return "plain" if method is None or type(method).__name__.startswith("Unquantized") else "packed"


class Real:
    """One unpacked wheel: `base` is what its layers derive from, `_model` builds a case's model."""

    base: type[Module]

    def _model(self, case: Case) -> Module:
        raise NotImplementedError

    def built(self, case: Case) -> list[Row]:
        """Every module, as its class builds it."""
        return _seen_in(self._model(case), self.base)

    def loaded(self, case: Case, tensors: Iterable[str]) -> dict[str, str]:
        """Return the place of each tensor, by the loader."""
        model = self._model(case)
        return _hand_out(model, tensors, model.load_weights)  # type: ignore[attr-defined]

    def reads(self, case: Case, pairs: Iterable[tuple[str, str]]) -> dict[str, bool]:
        """Return whether the loader puts both names of a tensor into one place."""
        listed = list(pairs)
        places = self.loaded(case, [name for pair in listed for name in pair])
        nowhere = {"dropped", "refused"}
        return {name: places[other] == places[name] and places[name] not in nowhere for name, other in listed}


def base_class() -> type[Module]:
    """The class that an engine's Linears, embeddings and experts derive from."""

    class Base(Module):
        def __init__(self, *_: object, quant_config: object = None, prefix: str = "", **__: object) -> None:
            super().__init__()
            self.prefix = prefix
            self.form = "no config" if quant_config is None else _decide(self, quant_config, prefix)
            self.group = quant_config.taken if self.form == "packed" else 0  # type: ignore[attr-defined]
            self.bias = None
            self.make_parameters()

        def make_parameters(self) -> None:
            packed = ("weight_packed", "weight_scale", "weight_shape")
            for name in packed if self.form == "packed" else ("weight",):
                setattr(self, name, Parameter())
            if self.form == "packed":  # so that SGLang's ClippableGLUParallelLinear, which asks for it, is seen, too
                object.__setattr__(self, "weight", Parameter())

    return Base


def _seen_in(model: Module, base: type[Module]) -> list[Row]:
    """Every module that asked for a form, and every plain Linear; one with two paths under its first."""
    rows, met = [], set()
    for path, module in model.named_modules():
        if id(module) in met:
            continue
        met.add(id(module))
        if isinstance(module, base) and not (module.form == "no config" and type(module).__name__ in _TABLES):
            rows.append(Row(module.prefix, path, type(module).__name__, module.form, module.group))
        elif isinstance(module, Linear):
            rows.append(Row("", path, "Linear", "no config"))
    return rows


def _hand_out(
    model: Module, names: Iterable[str], load: Callable[[list[tuple[str, Tensor]]], object]
) -> dict[str, str]:
    """Return the place that an engine's loader puts each tensor: the path of a module, `refused` or `dropped`."""
    found = {}
    for name in names:
        try:
            load([(name, Tensor(name))])
        except (ValueError, KeyError, AttributeError):
            found[name] = "refused"
            continue
        places = [path for path, one in model.named_parameters() if name in one.loaded]
        found[name] = places[0].rpartition(".")[0] if places else "dropped"
        for _, one in model.named_parameters():
            one.loaded.clear()
    return found
