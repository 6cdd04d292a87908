"""What spoils a picture, and how to tell."""
