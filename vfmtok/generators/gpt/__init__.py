"""Next-token prediction over the ids of an image: LlamaGen's GPT, and VFMTok's.

config            what can be set, and the named sizes
model             the transformer, its loss
rotary            positions on the grid
segments          decoding across the boundary of holistic tokens
released          names of the tensors in published files
"""
