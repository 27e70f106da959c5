"""vLLM with a loaded checkpoint, in this process."""

from typing import Any

from .decoding import decode_in_place_of_kernels
from .loading import FORMAT, watch_loading
from .media import prompt
from .mending import mend_cpu, mend_torchvision, supply
from .state import State


class Engine:
    """vLLM with a loaded checkpoint.

    Args:
        asked: the `start` message.
        state: takes what becomes known, also if vLLM fails.
    """

    def __init__(self, asked: dict[str, Any], state: State) -> None:
        mend_torchvision(state)
        import vllm
        from vllm.platforms import current_platform

        watch_loading(state)
        on_cpu = current_platform.is_cpu()
        self.dtype = asked["dtype"] or ("float32" if on_cpu else "bfloat16")
        self.decodes = on_cpu and self.dtype == "float32"
        if self.decodes:
            decode_in_place_of_kernels()
        if on_cpu:
            mend_cpu(state)
        self.name = f"vLLM {vllm.__version__}"
        self.device = str(current_platform.device_type)
        self._top = asked["top"]
        self._count = 0
        self._llm = vllm.LLM(
            model=asked["model"],
            dtype=self.dtype,
            load_format=FORMAT,
            hf_overrides=lambda config: supply(config, state),
            max_model_len=asked["length"],
            max_num_batched_tokens=max(asked["length"], 2048),
            max_num_seqs=1,
            max_logprobs=-1,
            enforce_eager=True,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            skip_mm_profiling=True,
            seed=0,
        )
        self.causal = on_cpu and state.sees_itself  # attention on a CPU has no mask for pictures

    def score(self, asked: dict[str, Any]) -> list[dict[int, Any]]:
        """Return vLLM's `Logprob` of the likeliest tokens and the next one, by id, for each row of a prompt."""
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        self._count += 1
        name = str(self._count)
        parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=self._top, detokenize=False)
        engine.add_request(name, prompt(asked["ids"], asked["media"], name), parameters)
        logprobs: Any = None
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    logprobs = output.prompt_logprobs or logprobs
        except Exception:
            engine.abort_request([name])  # abort goes by the name given to add_request
            raise
        return [logprobs[row + 1] for row in asked["rows"]]
