"""Input that tries to stop a key, a partition or the process, or to lose something in silence: one file a kind."""
