"""Decoders: feature maps to images. vqgan: the pixel decoder of VQGAN."""
