"""Runs Gemma 4 from packed words, whole or one layer at a time.

models          Says which class of transformers reads which checkpoint
pieces          Reads a tensor of a model from stored ones, plain or packed
resolving       Finds the stored tensors that each tensor of a model is made of
mapped          Ends the process with one line when a mapped file cannot be read
filling         Puts tensors into a model and takes them out
misfits         Says which tensors do not fit a model, and how
load            Loads strictly: every tensor has its place, or nothing runs
modules         Linears on packed words
tables          Embeddings on packed words
experts         Experts on packed words
words           Decodes int4 words on the CPU, compiled
streaming       Keeps only the layer that runs in memory
chat_templates  Renders conversations in a chat template's words, with a limit of time
conversations   Turns conversations into token ids, in a checkpoint's own chat frame
media           Makes pictures, videos and sounds in the form processors give them
patches         Cuts pictures into the patches that a model takes
probe           Defines a probe: a forward call, and the predictions in it that count
decoding        Decodes one token after the other: the likeliest, or drawn at temperature 1
generation      Answers prompts: `g4convert generate`
logits          Makes logits of the last states, some rows at a time
candidate       Defines what can be judged: logits, and what happens inside
tuning          Measures the GPU kernels on one model
triton          Fused products on packed words for NVIDIA GPUs
"""
