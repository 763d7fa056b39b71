"""/metrics, for Prometheus: what the names are, what is known of the debt, and the page that says it."""
