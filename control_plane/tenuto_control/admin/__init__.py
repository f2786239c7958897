"""What operators see and change: deployments, subscriptions, invocations, state.

Owns discovery and the checks at start. Does not own running anything.
"""
