"""From a name, path or run to a model, and back.

names        from_pretrained
loading      models from runs, checkpoints, saved folders and files
finetuning   weights to begin a training with, as far as they fit
saving       save_pretrained, push_to_hub; model_card
published    which file of which repository holds which part; manifest: the published numbers in manifests/
"""
