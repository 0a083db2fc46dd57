"""Windows: the figures of the pods of a probe over the newest minutes."""
