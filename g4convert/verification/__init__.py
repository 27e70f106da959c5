"""Verifies a quantized checkpoint: whether it matches its source, runs as written, and what it costs.

run         Runs the levels that are asked for and collects their findings
provenance  Compares the source in the output's record with the reference
changed     Detects files that changed during the verification
profiles    Reads the limits of metrics, shipped ones or those of a file
gates       Compares measured numbers with the thresholds of a profile
labels      Describes metrics and comparisons for the terminal and the page
static      Level `static`: names, shapes, config and files, without reading a weight
weights     Level `weights`: every stored value against its source
probes      Makes inputs that together reach every part of a model
logits      Level `logits`: full forward passes, compared
engine      Level `engine`: the same tokens through a real vLLM or SGLang
page        Makes the HTML page of a report
"""
