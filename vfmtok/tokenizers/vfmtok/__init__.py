"""VFMTok (arXiv 2507.08441): region tokens on a frozen vision foundation model.

config       what can be set
model        the composition; read this first
vit_decoder  codes to an image map, and in training to features
released     names of the tensors in published files
"""
