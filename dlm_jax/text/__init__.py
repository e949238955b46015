"""Texts to rows and back."""
