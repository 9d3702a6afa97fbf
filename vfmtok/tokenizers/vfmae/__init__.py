"""VFMAE (VFMTok2, arXiv 2605.18390): continuous region latents on a frozen vision foundation model.

config       what can be set
model        the composition; read this first
bottleneck   region tokens to latents
vit_decoder  latents to an image map, and in training to features
released     names of the tensors in published files
"""
