"""Evaluation: the networks, the reference, and what is measured. Sees only the contracts and uint8 images.

a tokenizer    reconstruction, reconstruction_numbers, round_trip, token_probe (L.P.)
a generator    generation, samples, sweep; sample_metrics measures samples, whoever made them
networks       inception, inception_weights, lpips, encoder_distance (fd@...), model_size (parameters, FLOPs)
their inputs   image_sources, given_images, reference, compared (opens and checks references)
what is kept   results (numbers and their protocols), parts (unfinished work)
"""
