"""Encoders: images to feature levels.

vfm       a frozen vision foundation model, through timm
named     short names of the models of the field
released  names of their tensors in their publishers' files
"""
