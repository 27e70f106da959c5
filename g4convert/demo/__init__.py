"""Tiny real Gemma 4 checkpoints of every family: what the demo, the tests and users' CI run on.

checkpoints   configs of the families, and `make`
weights       random weights in which every part matters
tokenizer     a real tokenizer, chat template and processor config, small
"""

from g4convert.demo.checkpoints import Family, make

__all__ = ["Family", "make"]
