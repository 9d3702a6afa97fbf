"""Numbers people can trust: the networks, the metrics, and the reference they are measured against."""
