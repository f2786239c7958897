"""The event shapes of AWS, as AWS documents them."""
