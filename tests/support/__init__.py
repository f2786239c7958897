"""What several suites share. Holds no tests."""
