"""From images to answers: geometry, post-processing, official result files and pictures."""
