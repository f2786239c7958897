"""tenuto beside Restate: the same handlers, broker, function processes and load generators, measured alternately.

Owns the comparison: both systems' lives, the passes, the medians and when a ratio may be told. Does not own what
`bench` measures of tenuto alone.
"""
