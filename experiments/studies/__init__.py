"""What this repository publishes: code, configuration and report of each study."""
