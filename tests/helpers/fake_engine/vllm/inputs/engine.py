"""Prompts as vLLM has them after its processors."""

from typing import Any


def tokens_input(prompt_token_ids: list[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


def mm_input(prompt_token_ids: list[int], mm_kwargs: Any, mm_hashes: Any, mm_placeholders: Any) -> dict[str, Any]:
    assert all(len(mm_hashes[kind]) == len(mm_kwargs[kind]) for kind in mm_placeholders)
    return {"prompt_token_ids": prompt_token_ids, "mm_kwargs": mm_kwargs, "mm_placeholders": mm_placeholders}
