"""Translation of each AWS event shape into what tenuto understands, one file per shape.

Owns shapes only. Does not own behaviour: activations go to the runtime, everything else to the control plane.
"""
