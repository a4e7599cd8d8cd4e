"""What trained networks say of files: classes, boxes, disparity, flow, depth, pointmaps."""
