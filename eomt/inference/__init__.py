"""From images to results: any image in, arrays, pictures and official result files out."""
