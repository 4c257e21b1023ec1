"""The network: backbone, queries, masked attention, heads."""
