"""The control plane: reads events, sequences keys, invokes functions, wakes sleepers.

Owns everything between Kafka, HTTP and the functions. Does not own durable state: that is in the lanes' table.
"""
