"""Gemma 4 in transformers: loaded strictly, run, and compared.

models   which class reads which checkpoint
reload   a written checkpoint, and the original with dequantized weights
logits   prompts that reach every part, and the difference of two sets of logits
"""
