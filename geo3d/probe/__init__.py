"""What a representation is worth: simple read-outs of frozen features."""
