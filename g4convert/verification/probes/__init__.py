"""Makes the probes: inputs that models are compared on.

suite    Makes the probes of bundled conversations, padding, media and drafts
media    Adds pictures, videos and sounds
own      Reads the user's own prompts, and holds them against the model
answers  Generates the reference's own answers, and compares step-by-step decoding with a prefill
"""
