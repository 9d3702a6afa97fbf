"""Weights: where they come from, and the names other publications give them."""
