"""Pictures of scenes and of what networks make of them."""
