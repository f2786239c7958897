"""Decisions as data: keys and routes, offsets, pauses.

Pure: takes `now` and random fractions, performs nothing.
"""
