"""g4convert: Gemma 4 checkpoints to W4A16 compressed-tensors that load, and are shown to."""

__version__ = "0.1.0"
__all__ = ["__version__"]
