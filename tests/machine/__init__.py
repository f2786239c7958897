"""The replay machine."""
