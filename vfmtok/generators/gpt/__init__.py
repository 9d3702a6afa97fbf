"""Next-token prediction over the ids of an image: LlamaGen's GPT, and VFMTok's.

config            what can be set, and the named sizes
model             the transformer, its loss
released          names of the tensors in published files
"""
