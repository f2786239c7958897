"""House style kept by test: what a linter does not see."""
