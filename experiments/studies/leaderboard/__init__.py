"""Samplers on the shipped models."""
