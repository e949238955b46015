"""Samplers on the examples of tasks: runs, records, statistics, tables and figures."""
