"""Runs lanes: invoke, commit, suspend, resume, drain, ship the outbox.

Owns `Dispatcher`, the one implementation of `ports.Execution`. Does not own where events come from (loops, ingress).
"""

from tenuto_control.dispatcher.dispatcher import Dispatcher
from tenuto_control.dispatcher.parts import Wiring
from tenuto_control.ports import Errand

__all__ = ["Dispatcher", "Errand", "Wiring"]
