"""Discriminators: images (B,3,H,W) in [-1,1] -> logits, larger meaning more real. ``build`` makes one by name."""
