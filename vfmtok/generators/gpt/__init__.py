"""Next-token prediction over the ids of an image: LlamaGen's GPT, and VFMTok's.

config            what can be set, and the named sizes
model             the transformer, its loss
causal_attention  the kernels over whole sequences, and over the cache
kv_cache          keys and values of the tokens so far
generate          sampling, one token after the other
released          names of the tensors in published files
"""
