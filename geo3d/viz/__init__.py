"""Pictures: arrays in, images and PLY files out; knows no method."""
