"""What training minimises, each a float32 scalar.

reconstruction  pixels, of the image and of smaller ones
structural      SSIM
perceptual      LPIPS, and distances in the features of a frozen encoder
feature         features of a frozen encoder, reconstructed
adversarial     what a discriminator and the generator minimise against each other; feature matching
kl              of a posterior of latents
alignment       of latents with the features of a frozen encoder
"""
