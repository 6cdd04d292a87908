"""Training: recipes, data on the fly, and one flat loop that resumes exactly where it stopped."""
