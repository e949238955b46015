"""EB-Sampler against its published claim."""
