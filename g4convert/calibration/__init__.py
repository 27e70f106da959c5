"""Makes calibration files, and quantizes layer by layer, each on what the quantized layers before it give.

documents        Reads texts: the user's own, a dataset's, or the bundled ones
answers          Lets the model answer the questions of texts itself
rows             Packs texts into rows, those that judge apart
sampling         Makes rows of token ids of texts
tokens           Holds the token ids that calibrate: sequences of one length, and which of them judge
begun            Keeps ids of a file that is not finished, so that a stopped run does not make them again
states           Keeps what flows between layers in files
replay           Gives the inputs of each layer, without running the layers before it
moments          Adds up what the inputs of a Linear are: H = X^T X, and rows that judge
rounding         Rounds one weight in several ways and takes the one with the least error in its output
layer            Quantizes the Linears of one decoder layer, in the order in which they run
experts          Quantizes the experts of a layer, each on the tokens that were routed to it
squares          Adds up the squares of what Linears are given
counted          Calls an unquantized layer with all sequences, and adds up what its Linears are given
counted_experts  Runs the experts of such a layer one by one
kept             Keeps what the stages of an unfinished recording found
record           Runs the unquantized model once, stage by stage, for the statistics of its inputs
targets          Keeps what the original says of each next token, in a form that is cheap to compare with
student          Runs a packed checkpoint whose scales can be trained
distill          Trains the scales of a student until it answers like the original
trained          Keeps trained scales until they are in the shards
scales           Method best: trains the scales of a conversion whose layers are done
sources          Reads a weight of the source whole
findings         Describes how weights were rounded, as JSON
run              Runs the layers of a conversion, and continues where one was killed
"""
