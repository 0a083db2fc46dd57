"""Metrics pushed to a collector of OpenTelemetry, by OTLP over gRPC.

`settings`, `options`, `files`, `resources` and `pushing` are imported always. The others import the
messages of OTLP, and only with `--otlp-endpoint`.
"""
