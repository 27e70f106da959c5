"""Bits for each unit of a model, chosen so that a size loses least.

    plan --> parts and their packings --> measured losses --> frontier --> choice --> recipe

bench          a resident model whose parts are rounded, run and put back
choosing       the choice for a target, tried at once; the shipped recipes beside it
choices        packings that may be chosen, from the command line
engines        packings that the engines of a recipe do not load
divergence     KL of the next token on a part of the vocabulary
frontier       least loss for every size, of independent choices
inputs         token ids that are run, and statistics that weigh, of a calibration file
measures       KL or errors of outputs, as the memory allows
outputs        errors of outputs, of weights in files and statistics of their inputs
plot           size against loss, as SVG
problem        parts of a model, what each may be packed as, and what that costs in bytes
result         what was chosen, beside what was measured
rounding       weights as they read back after packing
sensitivities  measured losses of single changes, in a file
smoothing      measured losses without the noise that a choice would fall for
target         the size, the bits per weight or the loss that is asked for
writing        a choice as a plain recipe file
"""
