"""AutoRound's 4 bits of a text model, on token ids that it is given.

Runs under an interpreter of its own, with auto-round and compressed-tensors, and prints one line of JSON: seconds spent
importing and working, and the versions. Its default is 200 steps of 8 windows for each layer, its recipe `light` 50;
on one core the default takes hours for this model.

    PEER/bin/python quality_autoround.py MODEL OUT --tokens IDS.safetensors --group 32 --steps 50 --batch 4
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("auto-round", "compressed-tensors", "transformers", "torch")


def main() -> None:
    """Quantize MODEL into OUT and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="windows of a step")
    args = parser.parse_args()
    start = time.perf_counter()
    import torch  # noqa: PLC0415 - timed
    from auto_round import AutoRound  # noqa: PLC0415 - timed
    from quality_values import lowered, raise_values  # noqa: PLC0415 - timed
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - timed
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - timed

    imported = time.perf_counter()
    ids = load_file(args.tokens)["ids"].long()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    raise_values(model.model.layers)
    model.config.model_type = "gemma4"  # its care for this family is for that name, and not for gemma4_text
    work = AutoRound(
        model,
        AutoTokenizer.from_pretrained(args.model),
        scheme="W4A16",
        group_size=args.group,
        iters=args.steps,
        dataset=[*ids.split(args.batch)],
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=args.batch,
        device_map="cpu",
        enable_torch_compile=False,
    )
    work.quantize_and_save(str(args.output), format="llm_compressor")
    for path in args.output.glob("*/*"):  # it makes a folder named after the scheme
        path.rename(args.output / path.name)
    for path in args.output.glob("*.safetensors"):
        save_file(lowered(load_file(path)), path)
    seconds = {"import_s": imported - start, "work_s": time.perf_counter() - imported}
    report = {**seconds, "versions": {name: version(name) for name in PACKAGES}}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
