"""Equality with PyTorch: recorded runs, and what repeats them."""
