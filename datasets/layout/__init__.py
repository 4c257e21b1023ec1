"""Recognition of a folder of data: what it is, and the keys that read it."""
