"""`tenuto dev`: one project on the whole stack, with its code reloaded when it is saved.

Owns the loop a developer works in: the project as its file describes it (`project`), which code a function has
(`probe`, `code`), what its log looks like (`lines`, `view`), and the life of a session (`session`). Does not own the
stack. Imports nothing here: `function_host` runs in each function's process, whose start is counted in milliseconds.
"""
