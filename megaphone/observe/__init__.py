"""What a node tells of itself: counts for Prometheus, log lines, and webhooks."""
