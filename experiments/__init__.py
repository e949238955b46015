"""Scripts: absl flags around the library."""
