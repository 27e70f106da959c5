"""The user's own prompts, held against the model that answers them before anything is loaded."""

from pathlib import Path

from g4convert.errors import UsageError
from g4convert.forward.conversations import Conversation, frame_of, read_prompts
from g4convert.forward.models import context_of, read_config
from g4convert.gemma4 import is_drafter
from g4convert.verification.probes.media import MEDIA, media_prompts
from g4convert.verification.probes.suite import ids_of


def conversations(prompts: Path, directory: Path) -> tuple[Conversation, ...]:
    """Read the user's own prompts for a checkpoint.

    Args:
        prompts: the file; see `read_prompts`.
        directory: directory of the config, tokenizer and chat template.

    Raises:
        InputError: the file is no file of prompts, or the tokenizer has another vocabulary than the model.
        UsageError: the model is a drafter, or prompts do not suit it: plain text for a chat model, conversations for a
            base model, more tokens than its context, or a name or bucket of the probes with pictures and sounds.
    """
    config = read_config(directory)
    if is_drafter(config.model_type):
        raise UsageError("a drafter is judged on states; it reads no prompts", hint="leave --prompts out")
    frame = frame_of(directory, config)
    own = read_prompts(prompts, chat=frame.chat)
    most = context_of(config)
    ids = [(prompt.place, *ids_of(prompt, frame)) for prompt in own]
    lengths = [(place, len(question), len(answer)) for place, question, answer in ids]
    if long := [f"{place}: {n + m:,} tokens" for place, n, m in lengths if n + max(m, 1) > most]:
        text = f"{prompts}: longer than the model's context of {most:,} tokens"
        raise UsageError(text, hint="shorten these lines", offenders=long)
    names = {prompt.name for prompt in media_prompts(config, 0)}
    taken = [f"{prompt.place}: the bucket {prompt.bucket!r}" for prompt in own if prompt.bucket in MEDIA]
    if taken := taken + [f"{prompt.place}: the name {prompt.name!r}" for prompt in own if prompt.name in names]:
        text = f"{prompts}: names of the probes with pictures and sounds, which are run beside these prompts"
        raise UsageError(text, hint="take other names", offenders=taken)
    return own
