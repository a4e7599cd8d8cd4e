"""`geo3d segment` from a checkout: `python tools/segment.py --checkpoint runs/swin3d-001 --scene scans/scene0000`."""

from geo3d.cli import command_line, segment

if __name__ == "__main__":
    command_line.run(segment.main, "segment.py")
