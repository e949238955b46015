"""The loop: rows, keys and steps. It knows no sampler, no model and no text."""
