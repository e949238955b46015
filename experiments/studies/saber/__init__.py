"""Saber's published claims on the shipped models."""
