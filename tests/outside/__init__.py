"""What users do on their own machines, as far as SAM, type checkers and AWS: projects from the wheel, and the examples.

Run by `make test-localstack`, since its tests take minutes.
"""
