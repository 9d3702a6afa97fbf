"""Hita (arXiv 2507.02358): holistic tokens and patch tokens with a codebook each.

config            what can be set
model             the composition; read this first
holistic_encoder  queries, a frozen model's tokens and patches read each other
fusion            both kinds of codes to an image map, and in training to features
released          names of the tensors in published files
"""
