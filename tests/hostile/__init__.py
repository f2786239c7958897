"""What nobody should hand in: for each kind of issue, many members, and the rule as the oracle."""
