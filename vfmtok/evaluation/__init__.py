"""Numbers people can trust: the networks, the metrics, and the reference they are measured against.

root scripts   root_scripts (what vqgan_test.py and test_net.py do), flags (theirs, and what these open)
               network_flags (of the Inception network, for every command that has it)
commands       measure_command, stats_command, reproduce and its manifest, class_agreement (vfmtok agreement),
               reconstruct_command and its given_images, info_command and its model_size, html_report (vfmtok report)
a tokenizer    reconstruction, reconstruction_numbers, reconstruction_picture, round_trip, token_probe (L.P.)
a generator    generation, samples, sweep; sample_metrics measures samples, whoever made them
metrics        frechet (FID, sFID), inception_score, kernel_distance (KID), precision_recall, encoder_distance (fd@...),
               pixel_metrics (PSNR, SSIM), lpips, codebook_usage, linear_probe
their inputs   image_sources, inception, inception_weights, feature_bank, reference, compared (opens and checks them)
what is kept   results (numbers and their protocols), parts (unfinished work, and files that are whole or not there)
"""
