"""Runs lanes: invoke, commit, suspend, resume, drain, ship the outbox.

Owns `Dispatcher`, the one implementation of `ports.Execution`. Does not own where events come from (loops, ingress).
"""

from tenuto_control.dispatcher.dispatcher import Dispatcher, Errand

__all__ = ["Dispatcher", "Errand"]
