"""Streaming nonlinear least squares over chunks of data, in one process or over MPI ranks."""
