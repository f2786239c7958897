"""The replay machine: what a running invocation is allowed to do next, decided without I/O.

Owns the phases of an attempt, the commands a handler issues and the journal they are checked against. Does not own
storage (`tenuto.store`), tasks or time (`tenuto.runtime`).
"""
