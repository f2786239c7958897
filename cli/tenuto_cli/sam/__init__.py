"""`tenuto sam`: writes the part of a SAM application that follows from `tenuto.toml`.

Owns the folder that it writes: the templates of tenuto's own deployment, with the project's functions and topics in
the place of the example's (`blocks`, `rendering`). Does not own the project's `template.yaml`, which it writes once and
then leaves alone, nor the deployment itself, which is SAM's.
"""
