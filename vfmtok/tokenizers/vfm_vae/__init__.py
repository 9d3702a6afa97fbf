"""VFM-VAE (arXiv 2510.18457): continuous latents, or several codebooks, on a frozen vision foundation model.

config    what can be set
model     the composition; read this first
fusion    levels of the frozen model to one small map, and latents to a wide one
released  names of the tensors in published files
"""
