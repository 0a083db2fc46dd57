"""What builds and tests have in common, and is no part of the product."""
