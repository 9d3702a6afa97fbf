"""Discriminators: images to logits, and what they need.

dino        heads on a frozen DINO ViT-S/16
patchgan    PatchGAN of pix2pix
stylegan    StyleGAN2's discriminator
batch_norm  batch statistics over all ranks
build       the table of their names; released: names of tensors in published training checkpoints
"""
