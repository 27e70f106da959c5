"""Makes the probes: inputs that models are compared on.

suite    Makes the probes: chat, padding, decoding, media
bundled  Loads the bundled conversations, in buckets
media    Adds pictures, videos and sounds
drafts   Makes the probe of an MTP assistant
answers  Generates the reference's own answers, and compares step-by-step decoding with a prefill
"""
