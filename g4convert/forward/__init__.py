"""Gemma 4 in transformers: loaded strictly, run whole or a part at a time, and compared.

models      which class reads which checkpoint
pieces      what each tensor of a model is made of, plain or packed, in any dialect
filling     a model's tensors, in and out
load        the strict loader
modules     Linears on packed words            experts    experts on packed words
streaming   a model of which only the part that runs is in memory
devices     where it runs              compiled   int4 words to weights on the CPU
greedy      one token after the other  tuning     the GPU's kernels measured on one model
candidate   what can be judged: logits, and what happens inside
reload      transformers' own way to a packed checkpoint, a second opinion
media       pictures, videos and sounds in the form processors give them
logits      a prompt for each input, and the difference of two sets of logits
"""
