"""The record of a lane and its writes."""
