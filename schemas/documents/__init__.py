"""What lies in buckets: versioned, checksummed, unknown fields refused."""
