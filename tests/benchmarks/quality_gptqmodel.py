"""GPTQModel's GPTQ of a text model, on token ids that it is given.

Runs under an interpreter of its own, with gptqmodel and compressed-tensors, and prints one line of JSON: seconds spent
importing and working, and the versions. GPTQModel writes its own format, whose codes and scales are packed again as
`pack-quantized`, so that one reader judges all: no number changes.

    PEER/bin/python quality_gptqmodel.py MODEL OUT --tokens IDS.safetensors --group 32
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("gptqmodel", "transformers", "torch")
BITS = 4


def main() -> None:
    """Quantize MODEL into OUT and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--group", type=int, required=True)
    args = parser.parse_args()
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own choice for two cores, one, is refused by its pool
    start = time.perf_counter()
    from gptqmodel import GPTQModel, QuantizeConfig  # noqa: PLC0415 - timed
    from quality_values import raise_values  # noqa: PLC0415 - timed
    from safetensors.torch import load_file  # noqa: PLC0415 - timed

    imported = time.perf_counter()
    ids = load_file(args.tokens)["ids"].tolist()
    config = QuantizeConfig(bits=BITS, group_size=args.group, device="cpu", offload_to_disk=False)
    model = GPTQModel.load(str(args.model), config)
    raise_values(model.model.model.layers)
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], batch_size=1)
    model.save(str(args.output / "own"))
    repack(args.output / "own", args.output, args.group)
    seconds = {"import_s": imported - start, "work_s": time.perf_counter() - imported}
    report = {**seconds, "versions": {name: version(name) for name in PACKAGES}}
    sys.stdout.write(json.dumps(report) + "\n")


def repack(source: Path, target: Path, group: int) -> None:
    """Write codes and scales of a GPTQ checkpoint as `pack-quantized`; refuses groups in another order."""
    import torch  # noqa: PLC0415 - after the clock has started
    from quality_values import lowered  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    tensors = {name: value for file in sorted(source.glob("*.safetensors")) for name, value in load_file(file).items()}
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32)
    found = {}
    for module in (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        words, scales, groups = (tensors[f"{module}.{part}"] for part in ("qweight", "scales", "g_idx"))
        if not torch.equal(groups, torch.arange(len(groups), dtype=groups.dtype) // group):
            raise SystemExit(f"{module}: groups are not in the order of the columns")
        codes = (words[:, None, :] >> shifts[None, :, None]) & 15  # [k / 8, 8, n], the first column in the lowest bits
        codes = codes.flatten(0, 1).T.contiguous()  # [n, k]
        packed = (codes.view(len(codes), -1, 8).long() << shifts.long()).sum(-1)
        found[f"{module}.weight_packed"] = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()
        found[f"{module}.weight_scale"] = scales.T.contiguous()
        found[f"{module}.weight_shape"] = torch.tensor(codes.shape)
    save_file(lowered(found), target / "model.safetensors")


if __name__ == "__main__":
    main()
