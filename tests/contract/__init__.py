"""One suite for each port, over its in-memory twin and its drivers."""
