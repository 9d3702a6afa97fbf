"""Discriminators: images to logits, and what they need.

dino        heads on a frozen DINO ViT-S/16
patchgan    PatchGAN of pix2pix
multiscale_patchgan  three of them, on an image, its half and its quarter
stylegan    StyleGAN2's discriminator
augment     differentiable augmentation of what a discriminator sees
batch_norm  batch statistics over groups of samples, or over all ranks
build       the table of their names; released: names of tensors in published training checkpoints
"""
