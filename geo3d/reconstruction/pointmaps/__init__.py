"""From pointmaps of pairs to one place: focal lengths, matches, poses of cameras, alignment of all views."""
