"""Tests of the control plane's ways in, loops and dispatcher."""
