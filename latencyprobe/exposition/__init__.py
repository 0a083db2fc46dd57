"""Metrics as Prometheus reads them: text, OpenMetrics, and protobuf with native histograms."""
