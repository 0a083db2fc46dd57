"""The Grafana boards of the chart, as code: `make dashboards` writes their JSON."""
