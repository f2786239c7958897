"""The real stack: end to end, and under kills."""
