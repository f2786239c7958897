"""`tenuto sam`: what it writes for a project, and that SAM, the linter and AWS's rules take it."""
