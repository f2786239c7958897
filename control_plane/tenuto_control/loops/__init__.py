"""Loops: what runs for as long as the control plane does. They move work between ports and the dispatcher."""
