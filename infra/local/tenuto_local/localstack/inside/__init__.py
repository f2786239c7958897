"""What runs inside LocalStack's own interpreter, beside its dependencies and without tenuto's.

Started by path, so that this folder is on its module path. Nothing of tenuto imports these modules.
"""
