"""What `experiments.benchmark` and `experiments.roofline` measure with."""
