"""What an event costs, counted."""
