"""Radiance grids of posed captures: fitted to the photos, fused from depth, or read off a trained field."""
