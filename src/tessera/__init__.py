"""The science: one folder per workload. Import the one you need; nothing is imported here."""
