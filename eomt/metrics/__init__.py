"""Official scores, summed exactly across images and ranks."""
