"""llm-compressor's `model_free_ptq` to W4A16 g32 with the settings that make it work on Gemma 4.

Runs under an interpreter of its own, llmcompressor 0.14 pinning other versions than g4convert's, and prints
one line of JSON: seconds spent importing and working, and the versions.

Its natural ignore list fails on the MoE (the three extra norms end in a digit) and its W4A16 preset, groups
of 128, does not divide 704 and 2112: both are given here, so that the comparison is with a result one can
use.

    PEER/bin/python tests/benchmarks/peer.py SRC OUT --workers 2
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

IGNORE = [
    "lm_head",
    "re:.*embed.*",
    "re:.*vision_tower.*",
    "re:.*router.*",
    "re:.*norm_[12]$",
]


def main() -> None:
    """Quantize SRC into OUT and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    start = time.perf_counter()
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: PLC0415 - timed
    from llmcompressor import model_free_ptq  # noqa: PLC0415 - timed

    imported = time.perf_counter()
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model_free_ptq(args.source, args.output, scheme=scheme, ignore=IGNORE, max_workers=args.workers)
    report = {
        "import_s": imported - start,
        "work_s": time.perf_counter() - imported,
        "versions": {name: version(name) for name in ("llmcompressor", "compressed-tensors", "torch")},
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
