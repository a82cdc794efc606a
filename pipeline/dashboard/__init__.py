"""The page over the output topics, and the snapshot that it shows."""
