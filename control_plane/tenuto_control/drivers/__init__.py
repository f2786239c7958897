"""Drivers: each port of `tenuto_control.ports` over the real system.

They translate and map errors; they decide nothing.
"""
