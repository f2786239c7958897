"""The command `tenuto`: its commands, and how mistakes are reported.

Owns the list of commands and the commands of a developer (`init`, `send`, `call`, `completion`). Does not own what the
control plane's commands do (`tenuto_control.__main__`), nor the stack behind `tenuto dev` (`tenuto_local`). A module is
imported when its command runs, so that `tenuto --help` is quick and a function's environment needs no extras.
"""
