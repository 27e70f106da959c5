"""g4convert converts Gemma 4 checkpoints to W4A16 compressed-tensors, and verifies that the results load.

    from g4convert import calibrate, check, fit, load, plan, quantize, verify

Importing the package imports none of its modules: each function is imported on first access.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from g4convert.api.calibrate import calibrate
    from g4convert.api.check import check
    from g4convert.api.fit import fit
    from g4convert.api.load import load
    from g4convert.api.plan import plan
    from g4convert.api.quantize import quantize
    from g4convert.api.verify import verify

__version__ = "0.1.0"
__all__ = ["__version__", "calibrate", "check", "fit", "load", "plan", "quantize", "verify"]

if not TYPE_CHECKING:  # a type checker reads the imports above, and so sees a misspelled name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'g4convert' has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 -- the package imports nothing

        named = import_module("g4convert.api.keywords").add_keyword_notes
        found = globals()[name] = named(getattr(import_module(f"g4convert.api.{name}"), name))
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
