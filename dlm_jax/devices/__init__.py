"""Batches over local devices, and processes that share the prompts."""
