"""Runs an engine's model files without the engine's dependencies: no torch, no CUDA, no kernels.

Chosen modules are loaded from the engine's wheel as they are. Whatever else they import is a stand-in: a class for
a capitalised name, otherwise something that can be called, indexed and passed on. `torch.nn` has just enough of
`Module` for a model to be built and for weights to be handed to it by name.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Anything", "Linear", "Module", "Parameter", "ours"]


class Anything:
    """Takes part in any expression. Called with one function or class, it gives that back: a decorator."""

    def __init__(self, *_: object, **__: object) -> None:
        """Anything may be given."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 -- it stands for anything
        """A decorator's argument, or anything."""
        if len(arguments) == 1 and not named and callable(arguments[0]) and not isinstance(arguments[0], Anything):
            return arguments[0]
        return Anything()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Anything()

    def __getitem__(self, _: object) -> Any:  # noqa: ANN401
        return Anything()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> Any:  # noqa: ANN401
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was entered."""

    def __bool__(self) -> bool:
        return False

    def __mro_entries__(self, _: tuple[type, ...]) -> tuple[type, ...]:
        return ()

    def _same(self, *_: object) -> Any:  # noqa: ANN401
        return self

    def _false(self, _: object) -> bool:
        return False

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _same
    __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = __or__ = __ror__ = __and__ = __rand__ = __mod__ = _same
    __lt__ = __le__ = __gt__ = __ge__ = _false


class _StandInType(type):
    """A stand-in class: members and subscripts are anything."""

    def __getattr__(cls, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __getitem__(cls, _: object) -> Any:  # noqa: ANN401
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class _StandIn(Anything, metaclass=_StandInType):
    """Stand-in for a capitalised name of a module that is not there."""

    def __init_subclass__(cls, **_: object) -> None:
        """Keywords of a class statement are ignored."""


class Parameter:
    """A name for weights: `loaded` is what was handed to it."""

    def __init__(self, *_: object, **__: object) -> None:
        self.dtype = self.device = None
        self.data = Anything()
        self.shape = ()
        self.loaded: list[str] = []

    def weight_loader(self, _: object, weight: Any, *__: object, **___: object) -> None:  # noqa: ANN401
        """Note what came."""
        self.loaded.append(str(weight))


class Module:
    """The part of torch.nn.Module that building and loading take."""

    _modules: dict[str, Module]
    _parameters: dict[str, Parameter]
    _non_persistent_buffers_set: set[str]

    def __init__(self, *_: object, **__: object) -> None:
        """The tables are made when asked for: vLLM assigns to a model before this is called."""

    def __setattr__(self, name: str, value: object) -> None:
        for kind, table in ((Module, "_modules"), (Parameter, "_parameters")):
            if isinstance(value, kind):
                getattr(self, table)[name] = value
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name in {"_modules", "_parameters"}:
            return self.__dict__.setdefault(name, {})
        if name == "_non_persistent_buffers_set":
            return self.__dict__.setdefault(name, set())
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def register_parameter(self, name: str, value: Parameter | None) -> None:
        """Add a parameter."""
        if value is not None:
            setattr(self, name, value)

    def register_buffer(self, name: str, value: object, *, persistent: bool = True) -> None:
        """Add a buffer; none of those is loaded here."""
        object.__setattr__(self, name, value)
        if not persistent:
            self._non_persistent_buffers_set.add(name)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct children."""
        yield from self._modules.items()

    def children(self) -> Iterator[Module]:
        """Direct children without their names."""
        yield from self._modules.values()

    def named_modules(self, prefix: str = "", **_: object) -> Iterator[tuple[str, Module]]:
        """Itself and all below, by path."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """Itself and all below."""
        yield from (module for _, module in self.named_modules())

    def named_parameters(self, *, recurse: bool = True, **_: object) -> Iterator[tuple[str, Parameter]]:
        """Parameters, by path."""
        for path, module in self.named_modules() if recurse else [("", self)]:
            yield from (
                (f"{path}.{name}" if path else name, one) for name, one in vars(module).get("_parameters", {}).items()
            )

    def parameters(self) -> Iterator[Parameter]:
        """Parameters without their names."""
        yield from (one for _, one in self.named_parameters())

    def named_buffers(self, *_: object, **__: object) -> Iterator[tuple[str, object]]:
        """None that would be loaded."""
        yield from ()

    def _get_name(self) -> str:
        return type(self).__name__

    def post_init(self) -> None:
        """Stand in for the method of transformers' PreTrainedModel."""


class ModuleList(Module):
    """Children by number."""

    def __init__(self, modules: Any = ()) -> None:  # noqa: ANN401
        super().__init__()
        for module in modules:
            self.append(module)

    def append(self, module: object) -> None:
        """Add one at the end."""
        setattr(self, str(len(self._modules)), module)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401
        return list(self._modules.values())[place]


class Linear(Module):
    """torch.nn.Linear: a weight that no quantization config reaches."""

    def __init__(self, in_features: int = 1, out_features: int = 1, bias: bool = True, **_: object) -> None:  # noqa: FBT001, FBT002
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias or None
        self.weight = Parameter()


class _Weighted(Module):
    """Embeddings and norms."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.weight = Parameter()


class _StandInModule(ModuleType):
    """A module that is not there."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        capitalised = name[:1].isupper() and not (name.isupper() and len(name) > 1)
        value = _StandInType(name, (_StandIn,), {}) if capitalised else Anything()
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds chosen modules in a wheel, and stand-ins for everything else below some packages."""

    def __init__(
        self, root: Path, real: frozenset[str], packages: frozenset[str], given: Mapping[str, dict[str, Any]]
    ) -> None:
        self.root, self.real, self.packages, self.given = root, real, packages, given

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        """A real file for the chosen, this loader for the rest of the packages, None for other packages."""
        if name.partition(".")[0] not in self.packages:
            return None
        if name in self.real:
            path = self.root / (name.replace(".", "/") + ".py")
            return importlib.util.spec_from_file_location(name, path)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A stand-in."""
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Give it what is defined for it."""
        for name, value in self.given.get(module.__name__, {}).items():
            setattr(module, name, value)


def _torch() -> dict[str, dict[str, Any]]:
    nn = {"Module": Module, "ModuleList": ModuleList, "Linear": Linear, "Parameter": Parameter}
    nn |= {"Embedding": type("Embedding", (_Weighted,), {}), "LayerNorm": type("LayerNorm", (_Weighted,), {})}
    return {"torch.nn": nn}


def ours(
    root: Path, package: str, real: Sequence[str], given: Mapping[str, dict[str, Any]]
) -> Callable[[str], ModuleType]:
    """An importer of an engine's own modules.

    Args:
        root: directory of the unpacked wheel.
        package: the engine's top package.
        real: modules below it that are loaded from the wheel.
        given: by full module name, what stands in for its members.

    Returns:
        Imports one of `real` by its name below the package.
    """
    chosen = frozenset(f"{package}.{name}" for name in real)
    packages = frozenset({package, "torch", "transformers", "triton", "compressed_tensors", "einops", "numpy", "PIL"})
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
    sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, _Finder)]
    sys.meta_path.insert(0, _Finder(root, chosen, packages, {**_torch(), **given}))
    return lambda name: importlib.import_module(f"{package}.{name}")
