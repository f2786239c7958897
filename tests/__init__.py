"""The proof of tenuto: laws, simulation, contracts, the real stack, and the tidiness of the tree."""
