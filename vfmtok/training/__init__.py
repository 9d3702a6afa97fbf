"""Training: recipes, the visible loops, and what keeps a long run safe and observable."""
