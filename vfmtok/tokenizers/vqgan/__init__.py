"""VQGAN: LlamaGen's VQ-16 and VQ-8, and the pilot VQGANs on frozen vision models of the VFMTok paper.

config    what can be set
model     the composition; read this first
released  names of the tensors in published files
"""
