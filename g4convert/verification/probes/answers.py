"""Greedy answers of the reference, and comparison of step-by-step decoding with one prefill.

A quantized model has to reproduce the original's own answers, so these are generated greedily and their tokens are
scored.
"""

from collections.abc import Sequence

import torch

from g4convert.devices import device_of
from g4convert.errors import GateError
from g4convert.forward.conversations import placeholders
from g4convert.forward.decoding import Decoder, end_tokens
from g4convert.forward.media import call
from g4convert.forward.models import Model, context_of
from g4convert.forward.probe import Probe
from g4convert.verification.probes.suite import pad_left

_PER_TOKEN = ("input_ids", "mm_token_type_ids", "attention_mask", "position_ids")
"""Arguments with one entry for each token."""
_STEPS = 4
"""Most tokens that are decoded one by one."""


def answer_probes(
    model: Model, probes: Sequence[Probe], *, max_new_tokens: int, batch_size: int = 16
) -> tuple[Probe, ...]:
    """Replace the answers of probes by the model's greedy answers.

    Args:
        model: the reference, unquantized.
        probes: probes of `make_probes`; probes without a question (drafts, plain text) are returned unchanged.
        max_new_tokens: most tokens of an answer; an end-of-turn token, which is scored too, or the end of the model's
            context ends it earlier.
        batch_size: number of text probes that are answered at a time.

    Returns:
        The probes in their order, with `response` and `targets` of the new answers.

    Raises:
        GateError: a logit is not finite.
    """
    answered = {}
    texts = [probe for probe in probes if probe.arguments.keys() == {"input_ids"} and is_asked(probe)]
    texts.sort(key=lambda probe: probe.response.shape[1])
    for batch in (texts[first : first + batch_size] for first in range(0, len(texts), batch_size)):
        rows = [row for probe in batch for row in questions(probe)]
        prompt = pad_left(batch[0].name, batch[0].bucket, [(row, ()) for row in rows], model.config)
        new, counted = _generate(model, prompt, max_new_tokens)
        for probe, question, row, is_answer in zip(batch, rows, new, counted, strict=True):
            ids = torch.tensor([[*question, *row[is_answer].tolist()]])
            answer = torch.arange(ids.shape[1])[None] >= len(question)
            answered[probe.name] = Probe.of(probe.name, probe.bucket, {"input_ids": ids}, answer)
    for probe in probes:
        if probe.name not in answered:
            answered[probe.name] = _answer_one(model, probe, max_new_tokens) if is_asked(probe) else probe
    return tuple(answered[probe.name] for probe in probes)


def is_asked(probe: Probe) -> bool:
    """Return whether a probe has a question before its answer."""
    return "input_ids" in probe.arguments and not bool(probe.response[:, 0].any())


def _answer_one(model: Model, probe: Probe, max_new_tokens: int) -> Probe:
    """Replace the answers of one probe with media, or of one left-padded batch."""
    rows = questions(probe)
    if len(rows) == 1:
        prompt = _shorten(probe, len(rows[0]))
    else:
        prompt = pad_left(probe.name, probe.bucket, [(row, ()) for row in rows], model.config)
    return _lengthen(prompt, *_generate(model, prompt, max_new_tokens))


def _generate(model: Model, prompt: Probe, max_new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate greedy tokens int64 [b, new], and a mask bool [b, new]: true up to the end of a row's answer.

    An end-of-turn token or the end of the model's context ends it. Placeholders of pictures, sounds and videos are
    never chosen: a probe with one in its answer could not be run again.
    """
    barred = torch.tensor(placeholders(model.config), dtype=torch.int64)
    last = torch.tensor(end_tokens(model))
    going = torch.ones(len(prompt.response), dtype=torch.bool)
    lengths, most = prompt.attended.view(prompt.response.shape).sum(dim=1), context_of(model.config)
    decoder = Decoder(model, prompt.arguments)
    new: list[torch.Tensor] = []
    counted: list[torch.Tensor] = []
    while len(new) < max_new_tokens and bool(going.any()):
        if new:
            decoder.step(new[-1][:, None])
        if not bool(decoder.logits.isfinite().all()):
            raise GateError(f"{prompt.name}: the reference's logits are not finite, so it gives no answer")
        new.append(decoder.logits.index_fill(-1, barred, -torch.inf).argmax(-1))
        counted.append(going)
        going = going & ~torch.isin(new[-1], last) & (lengths + len(new) != most)
    return torch.stack(new, dim=1), torch.stack(counted, dim=1)


def questions(probe: Probe) -> list[list[int]]:
    """Return the token ids of each row before its answer, without padding."""
    ids: torch.Tensor = probe.arguments["input_ids"]
    mask = probe.attended.view(ids.shape)
    rows = []
    for row, answer, attended in zip(ids, probe.response, mask, strict=True):
        places = answer.nonzero().flatten()
        end = int(places[0]) + 1 if len(places) else len(row)
        rows.append(row[:end][attended[:end]].tolist())
    return rows


def _shorten(probe: Probe, length: int) -> Probe:
    """Return a probe of the first `length` tokens in which no position is scored."""
    arguments = {key: value[:, :length] if key in _PER_TOKEN else value for key, value in probe.arguments.items()}
    rows = len(probe.response)
    return Probe.of(probe.name, probe.bucket, arguments, torch.zeros(rows, length, dtype=torch.bool))


def _lengthen(prompt: Probe, new: torch.Tensor, counted: torch.Tensor) -> Probe:
    """Append generated tokens [b, new] to a prompt; tokens after a row's end are kept but not scored."""
    arguments = dict(prompt.arguments)
    arguments["input_ids"] = torch.cat([arguments["input_ids"], new], dim=1)
    zeros = torch.zeros_like(new)
    if "mm_token_type_ids" in arguments:
        arguments["mm_token_type_ids"] = torch.cat([arguments["mm_token_type_ids"], zeros], dim=1)
    if "attention_mask" in arguments:
        arguments["attention_mask"] = torch.cat([arguments["attention_mask"], zeros + 1], dim=1)
        places = arguments["position_ids"][:, -1:] + torch.arange(1, new.shape[1] + 1)
        arguments["position_ids"] = torch.cat([arguments["position_ids"], places], dim=1)
    return Probe.of(prompt.name, prompt.bucket, arguments, torch.cat([torch.zeros_like(prompt.response), counted], 1))


def decode_equals_prefill(model: Model, probe: Probe) -> float:
    """Feed the answer token by token through the KV cache, and compare the logits with those of one forward.

    Args:
        model: any model with a Gemma 4 forward and a cache.
        probe: one row or a left-padded batch; its tokens before the answer are the prefill.

    Returns:
        The largest difference of logits, relative to the largest logit. About 1e-6 in float32; a larger value shows a
        fault of cache, positions or sliding window.
    """
    ids: torch.Tensor = probe.arguments["input_ids"]
    start = int(probe.response.int().argmax(dim=1).max()) + 1  # every row has begun: none is padding from here on
    stop = min(start + _STEPS, ids.shape[1])
    places = torch.arange(start - 1, stop, device=device_of(model))
    expected = call(model, {**probe.arguments, "logits_to_keep": places}, use_cache=False).logits.float().cpu()
    decoder = Decoder(model, _shorten(probe, start).arguments)
    logits = [decoder.logits, *(decoder.step(ids[:, place, None]) for place in range(start, stop))]
    difference = (torch.stack(logits, dim=1) - expected).abs().max()
    return float(difference / expected.abs().max())
