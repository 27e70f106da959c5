"""Follows what g4convert says of adapters: PEFT and mlx-lm write one and merge it, and values are compared.

    make test-remedies

The adapter adds a half to the first column of every query projection: a sum with one rounding, whoever computes it.
What the hint names is run as it stands there, its result is planned, and every tensor has to be the original or the
sum. mlx-lm merges into a model in 4 bits, too: there the original is what its own `convert` scales back. Exit status 1
where a remedy does not work.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from follow import DTYPE, Tensors, beside, command, program, ran, refusal, same, tensors, told
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from g4convert.demo import Family, make

STEP = 0.5
QUERY = ".self_attn.q_proj"
DECODER = re.compile(r"language_model\.model\.|model\.language_model\.")
MERGE = """
from peft import PeftModel
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained({base!r}, dtype="bfloat16")
({expression}).save_pretrained("OUT")
"""


def main() -> bool:
    """Follow each remedy; True if they work."""
    with TemporaryDirectory(prefix="g4convert-remedies-") as place:
        source = make(Family.DENSE, Path(place, "source"))
        for tool in TOOLS:
            Path(place, tool).mkdir()
        found = [told(tool, follow(source, Path(place, tool))) for tool, follow in TOOLS.items()]
    return all(found)


def peft(source: Path, place: Path) -> str:
    """Merge as the hint for an adapter of PEFT says."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 -- one tool of two

    model = AutoModelForImageTextToText.from_pretrained(source, dtype=DTYPE)
    low = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=rf".*language_model.*\{QUERY}"))
    for name, parameter in low.named_parameters():
        if ".lora_" in name:
            parameter.data = column(*parameter.shape) if "lora_B" in name else row(*parameter.shape)
    low.save_pretrained(place / "adapter")
    expression = refusal(place / "adapter").split("`")[1]
    ran([sys.executable, "-c", MERGE.format(base=str(source), expression=expression)], place)
    beside(source, place / "OUT")
    return judged(place, tensors(source), expression)


def mlx(source: Path, place: Path, *bits: str) -> str:
    """Merge as the hint for an adapter of MLX says.

    Args:
        source: a checkpoint.
        place: a directory to write to.
        bits: arguments with which `mlx_lm.convert` quantizes the model first; none leave it in bf16.
    """
    shutil.copytree(source, place / "model")
    config = json.loads((source / "config.json").read_text())
    config["vocab_size"] = config["text_config"]["vocab_size"]  # mlx-lm takes the released number where none is said
    (place / "model/config.json").write_text(json.dumps(config))
    convert = [program("mlx_lm.convert"), "--hf-path"]
    if bits:
        ran([*convert, "model", "--mlx-path", "base", *bits], place)
        ran([*convert, "base", "--mlx-path", "whole", "--dequantize"], place)
    base, whole = (place / "base", place / "whole") if bits else (place / "model", place / "model")
    originals = {name: tensor for name, tensor in tensors(whole).items() if DECODER.match(name)}
    adapted(base, originals, place / "adapter")
    hint = refusal(place / "adapter")
    tool, *words = command(hint)
    ran([program(tool), *words], place)
    return judged(place, originals, " ".join(command(hint)), *hint.split("`")[3].split())


def adapted(base: Path, originals: Tensors, adapter: Path) -> None:
    """Write an adapter as mlx-lm does."""
    adapter.mkdir()
    low: Tensors = {}
    for name, tensor in originals.items():
        if name.endswith(f"{QUERY}.weight"):
            module = DECODER.sub("language_model.model.", name.removesuffix(".weight"))
            low[f"{module}.lora_a"] = row(1, tensor.shape[1]).T.contiguous()
            low[f"{module}.lora_b"] = column(tensor.shape[0], 1).T.contiguous()
    save_file(low, adapter / "adapters.safetensors", metadata={"format": "mlx"})
    settings = {"rank": 1, "scale": 1.0, "dropout": 0.0, "keys": [QUERY.removeprefix(".")]}
    said = {"model": str(base), "fine_tune_type": "lora", "num_layers": len(low) // 2, "lora_parameters": settings}
    (adapter / "adapter_config.json").write_text(json.dumps(said))


def row(r: int, k: int) -> torch.Tensor:
    """Return the lower of an adapter's two matrices, float [r, k]: the first column alone."""
    return torch.eye(r, k)


def column(n: int, r: int) -> torch.Tensor:
    """Return the upper of an adapter's two matrices, float [n, r]."""
    return torch.full((n, r), STEP)


def judged(place: Path, originals: Tensors, by: str, *layout: str) -> str:
    """Plan what was merged, and compare it with the sums.

    Args:
        place: the directory of OUT.
        originals: tensors before the merge, in any program's names.
        by: what the hint named.
        layout: arguments of `g4convert plan` that the hint named.
    """
    ran([sys.executable, "-m", "g4convert", "plan", str(place / "OUT"), *layout], place)
    expected, found = summed(renamed(originals)), renamed(tensors(place / "OUT"))
    wrong = {name for name in expected.keys() | found.keys() if not same(expected.get(name), found.get(name))}
    return f"differs: {sorted(wrong)[:3]}" if wrong else f"equal, {len(found)} tensors, by `{by}`"


def renamed(originals: Mapping[str, torch.Tensor]) -> Tensors:
    """Return tensors by the names of transformers."""
    return {DECODER.sub("model.language_model.", name): tensor for name, tensor in originals.items()}


def summed(originals: Tensors) -> Tensors:
    """Return tensors with the adapter merged."""
    found = dict(originals)
    for name, tensor in originals.items():
        if name.endswith(f"{QUERY}.weight") and DECODER.match(name):
            found[name] = tensor.clone()
            found[name][:, 0] += STEP
    return found


def mlx_in_4_bits(source: Path, place: Path) -> str:
    """Merge as the hint says into a model that mlx-lm has quantized."""
    return mlx(source, place, "--quantize", "--q-bits", "4", "--q-group-size", "32")


TOOLS: Mapping[str, Callable[[Path, Path], str]] = {"PEFT": peft, "MLX": mlx, "MLX in 4 bits": mlx_in_4_bits}

if __name__ == "__main__":
    sys.exit(not main())
