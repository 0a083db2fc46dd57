"""From C source to object: the compiler process, and nothing else, imports this package."""
