"""The part of vLLM's interface that `vllm_child` uses, with kept answers behind it.

Its loader is as careless as vLLM's: it copies what it finds and asks for nothing. What it builds is what the directory
FAKE_VLLM_EXPECTS holds, a good checkpoint. Its logits are those of the file FAKE_VLLM_ANSWERS; to a prompt that is
another than the test's, there is no answer. FAKE_VLLM_FAULT is some of these, with commas between:

    hang, hang later    no answer to the first question, or to the second
    crash               the process ends
    noise               something on stdout and stderr, then all is well
    no backend          the model cannot be built on this machine
    too old             something cannot be imported
    no pictures         pictures are refused
    no kernel           every prompt is refused, as the library was built for another CPU
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.answers import question
from safetensors import safe_open

from vllm.model_executor.model_loader import LOADERS
from vllm.multimodal.inputs import HF_NAMES

__version__ = "0.0-fake"
FAULTS = os.environ.get("FAKE_VLLM_FAULT", "").split(",")


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    prompt_logprobs: int
    detokenize: bool


@dataclass
class Logprob:
    logprob: float


@dataclass
class LoadConfig:
    load_format: str


@dataclass
class RequestOutput:
    prompt_logprobs: list[Any]


class Config:
    """A config with its sections as attributes."""

    def __init__(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            setattr(self, key, Config(value) if isinstance(value, dict) else value)


def misbehave(moment: str) -> None:
    """Hang or crash, if that is the fault."""
    if moment in FAULTS:
        time.sleep(1000)
    if "crash" in FAULTS:
        sys.stderr.write("Segmentation fault in a kernel\n")
        sys.stderr.flush()
        os._exit(3)


class LLM:
    """A model in this process."""

    def __init__(self, *, model: str, load_format: str, hf_overrides: Any, **options: Any) -> None:
        misbehave("hang")
        if "noise" in FAULTS:
            sys.stdout.write('{"event": "scored"}\n')
        if "too old" in FAULTS:
            raise ImportError("cannot import name 'Gemma4Config'")
        assert options["max_logprobs"] == -1
        config = hf_overrides(Config(json.loads((Path(model) / "config.json").read_text())))
        LOADERS[load_format](LoadConfig(load_format)).load_model(model, config)
        self._waiting: list[tuple[str, Any, SamplingParams]] = []
        self.llm_engine = self

    def add_request(self, name: str, prompt: Any, parameters: SamplingParams) -> str:
        misbehave("hang later")
        assert not self._waiting, "vLLM would wait for what it was given before, and that never ends"
        self._waiting.append((name, prompt, parameters))
        return f"{name}-0a1b2c3d"  # its own name, by which `abort_request` knows none

    def abort_request(self, names: list[str]) -> None:
        self._waiting = [one for one in self._waiting if one[0] not in names]

    def has_unfinished_requests(self) -> bool:
        return bool(self._waiting)

    def step(self) -> list[RequestOutput]:
        _, prompt, parameters = self._waiting[0]
        media = list(self._media(prompt))
        if "no pictures" in FAULTS and media:
            raise AttributeError("'ReplicatedLinear' object has no attribute 'weight'")
        if "no kernel" in FAULTS:
            raise AttributeError("'_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'")
        ids = prompt["prompt_token_ids"]
        with safe_open(os.environ["FAKE_VLLM_ANSWERS"], "pt") as file:
            logprobs = file.get_tensor(question(ids, media)).log_softmax(-1)
        rows: list[Any] = [None]
        for row, true in zip(logprobs, ids[1:], strict=False):
            best = row.topk(parameters.prompt_logprobs)
            named = {true: float(row[true]), **dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))}
            rows.append({id_: Logprob(value) for id_, value in named.items()})
        self._waiting.pop(0)
        return [RequestOutput(rows)]

    def _media(self, prompt: Any) -> Any:
        """Pictures and sounds under transformers' names, where their placeholders say."""
        for kind, items in prompt.get("mm_kwargs", {}).items():
            for item, place in zip(items, prompt["mm_placeholders"][kind], strict=True):
                ids = prompt["prompt_token_ids"][place.offset : place.offset + place.length]
                soft = [True] * len(ids) if place.is_embed is None else place.is_embed.tolist()
                assert len({id_ for id_, is_soft in zip(ids, soft, strict=True) if is_soft}) == 1
                yield kind, {HF_NAMES[name]: tensor for name, tensor in item.items() if name in HF_NAMES}


def names_in(directory: str | Path) -> dict[str, Any]:
    """Name, and an empty tensor of the right kind, of all that a checkpoint holds."""
    found = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: torch.empty_like(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return found
