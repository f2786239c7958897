"""Foreign bytes and heavy peers: nothing but the item that is at fault is affected, and others go on meanwhile."""
