"""Monte-Carlo dropout trials on vision encoders."""
