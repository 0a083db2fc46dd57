"""Code that builds and tests share, and that is no part of the product."""
