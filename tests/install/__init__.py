"""What is installed from the wheel, with the repository out of reach."""
