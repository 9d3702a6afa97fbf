"""Weights: where they come from, and the names other publications give them.

from a name    names (from_pretrained), pretrained (from what is on disk), published (what was published, and where)
to a name      saving (save_pretrained, push_to_hub), model_card
files          download, download_command (vfmtok download), weight_files (read safely; where encoders come from)
tensors        released, released_discriminators (published names), model_hash; manifests/: see evaluation/manifest.py
"""
