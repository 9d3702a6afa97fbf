"""Evaluation: the networks, the reference, and what is measured. Sees only the contracts and uint8 images.

a tokenizer    reconstruction and its reconstruction_numbers, sampling_points (a picture), token_probe (L.P.)
codes in files decoding (to images)
a generator    generation, samples (which, checked), sweep; sample_metrics measures samples, whoever made them;
               agreement (do images look like their classes, are they new?), completions (in-painted images);
               latent_agreement (of latents)
any model      alignment (how alike neighbourhoods are in features), alignment_conditions (the images it is measured on)
networks       inception, inception_weights, lpips, encoder_distance (fd@...), model_size (parameters, FLOPs)
their inputs   image_sources, given_images, resizing, pixel_protocols, reference (opened or measured), reference_file
what is kept   results (numbers and their protocols), jobs (unfinished work)
"""
