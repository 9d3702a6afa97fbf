"""Next-token prediction over the ids of an image: LlamaGen's GPT, and VFMTok's.

config            what can be set, and the named sizes
model             the transformer, its loss; layers: what it is made of
rotary            positions on the grid
segments          decoding across the boundary of holistic tokens, and in any order
released          names of the tensors in published files
"""
