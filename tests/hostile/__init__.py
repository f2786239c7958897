"""Hostile input: one file for each kind, with members that nobody listed; whatever comes in stops and loses nothing."""
