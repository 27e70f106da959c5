"""Level `logits`: runs the original, the dequantized and the packed model, and compares their logits.

level        Loads the models, runs the probes, stores references
guarded      Stops the level where the model of a wrong config cannot be run
cost         Estimates time and memory of the level
judge        Judges loss against thresholds and parity against the noise floor
metrics      Sums up differences over all probes
pairs        Compares several models' logits, some rows at a time
scores       Reduces two sets of logits to a few numbers for each token
row_sums     Compiled inner loops of the scores
states       Compares hidden states and routers
noise        Measures the distance of a model from itself when only rounding differs
kept         Keeps outputs of the reference until the candidate has run
intact       Checks that a stored reference is undamaged and fits the model
capture      Stores a reference in one file
trace        Examines a candidate module by module
parts        Names the parts of a model that run one after the other, and puts one into another model
teacher      Runs each module on the reference's inputs
activations  Probes gated modules with inputs that expose a wrong activation
embedders    Probes embedders and poolers of the towers
inputs       Compares masks, positions and embeddings between modules
blame        Ranks modules by their share of the KL
earlier      Says whether the recipe is to blame, by what the levels before found
advice       Advises on recipes that cost less where four bits cost too much
"""
