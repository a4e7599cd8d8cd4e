"""Sample sources: the items that methods read, one kind a file, made of the scenes of any dataset."""
