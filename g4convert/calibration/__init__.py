"""Makes calibration files, and quantizes layer by layer, each layer on the outputs of the quantized layers before it.

documents        Reads texts: the user's own, a dataset's, or the bundled ones
canvas           A picture that is drawn in whole numbers
drawings         The pictures of the bundled texts
pictures         Pictures of texts: files of the user's, and drawings
answers          Lets the model answer the questions of texts itself
rows             Packs texts into rows, judging and calibrating rows apart
sampling         Turns texts into rows of token ids
tokens           Holds the token ids that calibrate: sequences of one length, and which of them judge
states           Keeps the values that flow between layers in files
team             Shares the work of a layer between ranks and threads
work             Holds the weights of one decoder layer, and what rounds them
walk             Runs one decoder layer on all sequences, part by part
forwards         Makes the arguments of a forward of one sequence, with its pictures
replay           Makes the arguments of each layer, without running the layers before it
moments          Sums H = X^T X of a Linear's inputs, and keeps judging rows
rounding         Rounds one weight in several ways and takes the way with the least output error
layer            Quantizes the Linears of one decoder layer, in the order in which they run
experts          Quantizes the experts of a layer, each on the tokens that were routed to it
squares          Adds up the squares of Linears' inputs
counted          Runs an unquantized layer on all sequences, and adds up the squares of its Linears' inputs
counted_experts  Runs the experts of an unquantized layer one by one
kept             Keeps what an unfinished calibration file has: its ids, and the sums of its recording's stages
record           Runs the unquantized model once, stage by stage, for the statistics of its inputs
targets          Keeps the original's next-token probabilities in a form that is cheap to compare with
student          Runs a packed checkpoint whose scales can be trained
distill          Trains the scales of a student until it answers like the original
trained          Keeps trained scales until they are in the shards
scales           Method best: trains the scales of a conversion whose layers are done
findings         Describes how weights were rounded, as JSON
run              Runs the layers of a conversion, and resumes a killed run
"""
