"""Diffusion transformers on latents: LightningDiT, REG and DiT-DH as one family.

config     what can be set, settings of sampling, the named sizes
model      the network; layers: its blocks; wide_head: DiT-DH's second stack
flow       noise levels, path, losses
guidance   guided velocities
image_features  what REG learns of the images besides
sampling   grids of times, Euler, Heun, SDE
released   names of the tensors in published files
"""
