"""Tests of the examples, on the real runtime."""
