"""The tiny checkpoints are what they say: real, complete, deterministic, and no tensor is idle."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Checkpoints
from helpers import reload
from helpers.grids import one_in
from helpers.prompts import logits, output_of, prompts
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma4AudioFeatureExtractor, Gemma4ImageProcessorPil

from g4convert.demo import Family, make
from g4convert.demo.trained import TRAINED, trained
from g4convert.errors import UsageError

pytestmark = pytest.mark.parametrize("family", one_in(2, Family))


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}


def test_loads_strictly_and_bit_equal(family: Family, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family)
    loaded = reload.reload(directory, "bfloat16").state_dict()
    stored = tensors(directory)
    renames = (
        (r"\.embed_vision\.multimodal_embedder\.", ".embed_vision."),
        (r"\.embed_vision\.(p\w+)", r".vision_embedder.\1"),
    )
    for name, value in loaded.items():
        on_disk = name
        for pattern, replacement in renames if "unified" in family else ():
            on_disk = re.sub(pattern, replacement, on_disk)
        if on_disk not in stored:  # the tied head
            assert (name, on_disk) == ("lm_head.weight", "lm_head.weight")
            continue
        torch.testing.assert_close(value, stored.pop(on_disk), rtol=0, atol=0)
    assert not stored


def test_has_several_shards_and_a_true_index(family: Family, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    assert index == found
    assert len(set(index.values())) >= 3
    assert sum(path.stat().st_size for path in directory.iterdir()) < 8e6


def test_same_bytes_twice_and_others_for_another_seed(family: Family, checkpoints: Checkpoints, tmp_path: Path) -> None:
    first, again = checkpoints(family), make(family, tmp_path / "again")
    other = make(family, tmp_path / "other", seed=1)
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    for path in other.glob("*.safetensors"):
        assert path.read_bytes() != (first / path.name).read_bytes(), path.name


def test_every_tensor_is_finite_and_varied(family: Family, checkpoints: Checkpoints) -> None:
    for name, tensor in tensors(checkpoints(family)).items():
        if "lconv1d" in name and name.endswith(("_min", "_max")):
            assert tensor.isinf(), name
            continue
        assert tensor.isfinite().all(), name
        if tensor.numel() > 1:
            assert tensor.double().std() > 0, name


def test_every_prompt_gives_peaked_finite_logits(family: Family, checkpoints: Checkpoints) -> None:
    model = reload.reload(checkpoints(family))
    for prompt in prompts(model):
        values = logits(model, prompt)
        assert values.isfinite().all(), prompt.bucket
        assert 1 < values.std() < 20, prompt.bucket
        if "input_ids" in prompt.arguments:  # else top-1 agreement would say nothing
            assert (values.argmax(-1) == prompt.arguments["input_ids"][0]).float().mean() < 0.2, prompt.bucket


def test_every_tensor_matters_to_some_prompt(family: Family, checkpoints: Checkpoints) -> None:
    model = reload.reload(checkpoints(family))
    found = prompts(model)
    for parameter in model.parameters():
        parameter.requires_grad_()
    for prompt in found:
        values = model(**prompt.arguments, use_cache=False)[output_of(prompt)]
        (values * torch.linspace(-1, 1, values.numel()).reshape(values.shape)).sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle <= {"masked_embedding.centroids.weight"}  # picks tokens by top-k, which has no gradient


@pytest.mark.parametrize("dtype", one_in(2, ["float16", "float32"]))
def test_other_dtypes(family: Family, dtype: str, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family, dtype=dtype)
    found = {tensor.dtype for name, tensor in tensors(directory).items() if not name.endswith("token_ordering")}
    assert found == {getattr(torch, dtype)}
    assert json.loads((directory / "config.json").read_text())["dtype"] == dtype


def test_qat_weights_lie_on_a_signed_lattice(family: Family, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family, qat=True)
    assert "quant_method" not in json.loads((directory / "config.json").read_text())["quantization_config"]
    plain = tensors(checkpoints(family))
    changed = set()
    for name, tensor in tensors(directory).items():
        if torch.equal(tensor, plain[name]):
            continue
        changed.add(name)
        groups = tensor.float().numpy().reshape(-1, 32)
        peak = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
        error = np.full(len(groups), np.inf)
        for level in (8, 7, 6, 5):
            codes = groups * (-level / peak)
            error = np.minimum(error, np.abs(codes - np.rint(codes)).max(axis=1))
        assert error.max() < 0.05, name  # bf16 rounds d * q, and d is read back from one rounded product
    decoder = {name for name in plain if ".layers." in name and "tower" not in name}
    assert changed == {name for name in decoder if re.search("_proj|per_layer_input_gate", name) and "norm" not in name}
    reload.reload(directory)


def test_tokenizer_agrees_with_config(family: Family, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family)
    config = json.loads((directory / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text_config = config.get("text_config", config)
    assert len(tokenizer) == text_config["vocab_size"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    for key, token in (
        ("image_token_id", "<|image|>"),
        ("boi_token_id", "<|image>"),
        ("audio_token_id", "<|audio|>"),
    ):
        assert config.get(key, tokenizer.convert_tokens_to_ids(token)) == tokenizer.convert_tokens_to_ids(token)
    ids = tokenizer("The capital of France is Paris; naïve 日本")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) < 40
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is Paris; naïve 日本"
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<bos><|turn>user\n<|image|>What is it?<turn|>\n<|turn>model\n"
    chat_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert chat_ids[:2] == [2, tokenizer.convert_tokens_to_ids("<|turn>")]
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn|>")]


def test_config_and_processor_have_the_soft_tokens_that_vllm_asks_for(family: Family, checkpoints: Checkpoints) -> None:
    for directory in (checkpoints(family), *([trained(family)] if family in TRAINED else [])):
        vision = json.loads((directory / "config.json").read_text()).get("vision_config")
        if vision is None:
            continue
        key = "num_soft_tokens" if family == "unified" else "default_output_length"  # what vLLM 0.33 reads
        assert vision[key] in {70, 140, 280, 560, 1120}  # _SUPPORTED_SOFT_TOKENS of gemma4_mm.py
        processor = json.loads((directory / "processor_config.json").read_text())
        assert processor["image_processor"]["max_soft_tokens"] == vision[key] == processor["image_seq_length"]


def test_processors_feed_the_model(family: Family, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family)
    if family not in {"moe", "dense", "e2b"}:  # unified processors need torchvision
        assert (directory / "processor_config.json").exists() == (family == "unified")
        return
    model = reload.reload(directory)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    made = Gemma4ImageProcessorPil.from_pretrained(directory)(picture, return_tensors="pt")
    count = int(made.pop("num_soft_tokens_per_image")[0])
    with torch.no_grad():
        ids = torch.tensor([[2, *[model.config.image_token_id] * count, 9]])
        assert model(input_ids=ids, mm_token_type_ids=(ids > 9).long(), **made).logits.isfinite().all()
        if model.config.audio_config is not None:
            sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
            heard = Gemma4AudioFeatureExtractor.from_pretrained(directory)([sound], return_tensors="pt")
            tokens = int(heard["input_features_mask"][0, ::2][::2].sum())
            ids = torch.tensor([[2, *[model.config.audio_token_id] * tokens, 9]])
            assert model(input_ids=ids, **heard).logits.isfinite().all()


def test_refuses_a_directory_with_files_and_an_unknown_dtype(family: Family, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        make(family, tmp_path)
    with pytest.raises(UsageError, match="int8"):
        make(family, tmp_path / "new", dtype="int8")
