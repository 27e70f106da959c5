"""Judges a quantized checkpoint: is it what its source says, does it run as written, what does it cost?

run      Runs the levels that are asked for and collects their findings
changed  Notices that what is verified was written meanwhile
gates    Compares measured numbers with the thresholds of a profile
static   Level `static`: names, shapes, config and files, without reading a weight
weights  Level `weights`: every stored value against its source
probes   Inputs that between them reach every part of a model
logits   Level `logits`: full forward passes, compared
engine   Level `engine`: the same tokens through a real vLLM or SGLang
page     The HTML page of a report
"""
