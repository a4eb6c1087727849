"""What a run tells about itself while it lasts: written by the ranks, read by anyone with access to the files."""
