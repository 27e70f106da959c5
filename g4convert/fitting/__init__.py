"""Bits for each unit of a model, chosen so that a size loses least.

    plan --> parts and their packings --> measured losses --> frontier --> choice --> recipe

bench          KL of a resident model with some parts rounded
choosing       the choice for a target, measured as a whole; the shipped recipes for comparison
choices        allowed packings, parsed from the command line
divergence     KL of the next token on a part of the vocabulary
frontier       least loss for every size, of independent choices
inputs         token ids to run and statistics of inputs, read from a calibration file
measures       KL if the memory holds the decoder, else output errors; their noise averaged out
outputs        output errors, from stored weights and statistics of their inputs
parts          parts of a model and the packings allowed for each
plot           size against loss, as SVG
problem        choices of packings, their bytes, and the best for every size
result         the written choice and all measurements
rounding       weights after packing and unpacking
sensitivities  measured losses of single changes, in a file
standing       losses by gptq and best, estimated from those of a method that stands in for them
target         the target: a size, bits per weight or a loss
writing        a choice as a plain recipe file, and the packings that the recipe's engines load
"""
