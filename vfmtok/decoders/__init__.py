"""Decoders: feature maps to images. vqgan: the pixel decoder of VQGAN; synthesis: VFM-VAE's multi-scale decoder."""
