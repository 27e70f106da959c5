"""Makes the inputs that models are compared on.

suite    Makes the probes: chat, padding, decoding, media
bundled  Has the conversations that ship, in buckets
media    Adds pictures, videos and sounds
drafts   Makes the probe of an MTP assistant
answers  Adds answers of the reference itself, and step-by-step decoding
"""
