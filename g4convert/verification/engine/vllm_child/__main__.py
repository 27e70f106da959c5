"""Start of the program, as `python FOLDER QUESTIONS REPLIES` with the file descriptors of two pipes.

Python puts the folder itself on the path. It is taken off again and made a package, so that no module of the folder
has the name of one that vLLM looks for.
"""

import os
import sys
from importlib import import_module
from types import ModuleType

if __name__ == "__main__":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    package = ModuleType("vllm_child")
    package.__path__ = [sys.path.pop(0)]
    sys.modules[package.__name__] = package
    with os.fdopen(int(sys.argv[1])) as questions, os.fdopen(int(sys.argv[2]), "w") as replies:
        import_module("vllm_child.serving").serve(questions, replies)
