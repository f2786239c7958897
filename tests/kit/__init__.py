"""The test kit for users, tested as they use it."""
