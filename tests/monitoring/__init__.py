"""The files in deploy/ that Prometheus and Grafana read."""
