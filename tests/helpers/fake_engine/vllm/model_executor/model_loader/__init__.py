"""Loaders by name."""

from collections.abc import Callable
from typing import Any

LOADERS: dict[str, Any] = {}


def register_model_loader(name: str) -> Callable[[Any], Any]:
    def register(loader: Any) -> Any:
        LOADERS[name] = loader
        return loader

    return register
