"""The `narrows` command, one file a noun."""
