"""Makes tiny real Gemma 4 checkpoints of every family, for the demo, the tests and users' CI.

run          Plans, quantizes, loads and compares one of them
comparison   Says how far two sets of logits are apart
checkpoints  Has the configs of the families, and `make`
weights      Makes random weights in which every part matters
tokenizer    Makes a small real tokenizer, chat template and processor config
trained      Finds the trained checkpoints that are shipped
"""

from g4convert.demo.checkpoints import make
from g4convert.gemma4.family import Family

__all__ = ["Family", "make"]
