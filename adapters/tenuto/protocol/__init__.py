"""What control plane and functions say to each other, and the names things have in storage.

Owns identifiers, wire messages, stored records and the limits both sides must agree on. Does not own any decision.
"""
