"""The deployment's templates, as far as no account is needed to check them."""
