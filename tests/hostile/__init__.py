"""What producers, callers and handlers may do to tenuto: one file for each kind, with many members of it."""
