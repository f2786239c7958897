"""The embedded stack against its promises: every component is the real one, and nothing is left behind."""
