"""Forced multi-band PSF photometry on registered FITS frames, cut into patches."""
