"""Files of datasets: archives, cached indices, decoding."""
