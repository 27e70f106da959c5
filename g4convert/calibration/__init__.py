"""Quantizes layer by layer, each on what the quantized layers before it give.

documents  Reads texts: the user's own, a dataset's, or the bundled ones
answers    Lets the model answer the questions of texts itself
rows       Packs texts into rows, those that judge apart
sampling   Makes rows of token ids of texts
tokens     Holds the token ids that calibrate: sequences of one length, and which of them judge
states     Keeps what flows between layers in files
replay     Gives the inputs of each layer, without running the layers before it
moments    Adds up what the inputs of a Linear are: H = X^T X, and rows that judge
rounding   Rounds one weight in several ways and takes the one with the least error in its output
layer      Quantizes the Linears of one decoder layer, in the order in which they run
experts    Quantizes the experts of a layer, each on the tokens that were routed to it
record     Runs the unquantized model once, and adds up the squares of what its Linears are given
run        Runs the layers of a conversion, and continues where one was killed
"""
