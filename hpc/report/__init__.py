"""The report page: what a run did, with pictures, in one self-contained file."""
