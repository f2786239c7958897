"""What tenuto costs and how fast it is: five workloads on the embedded stack, beside a naive consumer.

Owns the workloads, how they are observed, and the report. Proves nothing about correctness, though each run checks that
every event took effect once.
"""
