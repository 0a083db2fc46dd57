"""The pure domain: values and functions, without I/O, processes or protocols."""
