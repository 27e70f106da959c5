"""llm-compressor's GPTQ of a text model, on token ids that it is given.

Runs under an interpreter of its own, since llmcompressor pins other versions than g4convert, and prints one line of
JSON: seconds spent importing and working, and the versions.

    PEER/bin/python quality_peer.py MODEL OUT --tokens IDS.safetensors --group 32 --observer imatrix_mse
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("llmcompressor", "compressed_tensors", "transformers", "torch")


def main() -> None:
    """Quantize MODEL into OUT and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--observer", required=True)
    args = parser.parse_args()
    start = time.perf_counter()
    import torch  # noqa: PLC0415 - timed
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: PLC0415 - timed
    from datasets import Dataset  # noqa: PLC0415 - timed
    from llmcompressor import oneshot  # noqa: PLC0415 - timed
    from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: PLC0415 - timed
    from safetensors.torch import load_file  # noqa: PLC0415 - timed
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - timed

    imported = time.perf_counter()
    ids = load_file(args.tokens)["ids"].tolist()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=args.group, observer=args.observer
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        num_calibration_samples=len(ids),
        max_seq_length=len(ids[0]),
        shuffle_calibration_samples=False,
        pipeline="sequential",
        output_dir=str(args.output),
    )
    seconds = {"import_s": imported - start, "work_s": time.perf_counter() - imported}
    report = {**seconds, "versions": {name: version(name) for name in PACKAGES}}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
