"""Reports of a node about itself: counts for Prometheus, log lines, and webhooks."""
