"""`make demo`: the three examples on a real stream, with a function killed on the way, checked against the truth.

Owns what a person sees in two minutes. Does not own the examples, which say themselves what must come out.
"""
