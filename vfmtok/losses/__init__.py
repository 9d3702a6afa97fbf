"""What training minimises: pixel, feature, perceptual and adversarial terms, each a float32 scalar."""
