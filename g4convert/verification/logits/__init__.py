"""Level `logits`: runs original, dequantized and packed model, and compares what they answer.

level        Loads the models, runs the probes, stores references
cost         Estimates what the level will take
judge        Judges loss against thresholds and parity against the noise floor
metrics      Sums up differences over all probes
pairs        Compares several models' logits, some rows at a time
scores       Reduces two sets of logits to a few numbers for each token
compiled     Has the compiled inner loops of the scores
states       Compares hidden states and routers
noise        Measures how far a model is from itself when only rounding differs
kept         Keeps outputs of the reference until the candidate has run
intact       Says whether a stored reference can be believed
capture      Stores a reference in one file
trace        Looks into a candidate, module by module
parts        Names the parts of a model that run one after the other
teacher      Feeds each module the inputs of the reference
activations  Probes gated modules with inputs made for a wrong activation
embedders    Probes embedders and poolers of the towers
inputs       Reads masks and positions between modules
swaps        Puts a module of one model into another
blame        Ranks modules by their share of the loss
advice       Says what costs less where four bits cost too much
"""
