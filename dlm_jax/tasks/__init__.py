"""Tasks: examples in, text out, verdict. One file per task."""
