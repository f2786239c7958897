"""Input that nobody should send, from producers, callers and handlers: one file for each kind of it."""
