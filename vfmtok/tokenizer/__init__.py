"""image -> encoder -> region sampler -> quantizer -> ViT decoder -> pixel decoder -> image."""
