"""The record of a lane and every write it can take.

Owns the head's schema, the transitions of PROTOCOL's table and their conditions, as data. Does not own I/O: a `Table`
(`tenuto.store`) applies the writes.
"""
